// Replaces the agent's own executable and starts it in this process, so that the run goes on under the new one (X7).
import { isDigest } from '../../src/base/digest-text.ts';
import { AGENT_PROBE_TIMEOUT_MS, AGENT_SLICE_BYTES } from '../../src/base/limits.ts';
import { printable } from '../../src/base/printable.ts';
import type { ManifestItem } from '../../src/model/manifest.ts';
import { digestOfFile, parentOf } from '../durable.ts';
import { AgentError, type Platform } from '../platform/platform.ts';
import { failure, type InstallContext, type Outcome } from './context.ts';

export type AgentUpdate = {
  readonly context: InstallContext;
  readonly item: ManifestItem;
  /** Digest of the running agent. */
  readonly ownDigest: string;
  /** Says goodbye, waits until that is out, and starts the new executable; only returns by throwing. */
  readonly restart: () => Promise<never>;
};

/**
 * Installs a new agent. Success does not return: the new agent, offered the same manifest, finds itself to be what it
 * says, and that is the item's result.
 */
export async function updateAgent({ context, item, ownDigest, restart }: AgentUpdate): Promise<Outcome> {
  const { platform } = context;
  const wanted = item.files[0]?.digest;
  if (wanted === ownDigest) return { outcome: 'installed' };
  const { selfPath } = platform;
  const temporary = `${selfPath}.new`;
  try {
    context.report(item, 'install');
    await copyExecutable(platform, `${context.drive}${item.files[0]?.path ?? ''}`, temporary);
    if ((await digestOfFile(platform, temporary)) !== wanted) {
      throw new AgentError('digest-mismatch', 'the new agent did not reach the disk as it was on the drive');
    }
    context.report(item, 'check');
    await probe(platform, temporary, item.version);
    swapExecutable(platform, temporary);
  } catch (error) {
    return failure(error);
  }
  try {
    return await restart();
  } catch (error) {
    platform.files.rename(`${selfPath}.previous`, selfPath);
    platform.files.syncFolder(parentOf(selfPath));
    return failure(error);
  }
}

/** The Debian package that the agent may come as. */
export const AGENT_PACKAGE = 'pratique-agent';

/** Whether the executable on the disk is another one than the running agent: a package has replaced it. */
export async function isReplaced(platform: Platform, ownDigest: string): Promise<boolean> {
  const { files, selfPath } = platform;
  if (!isDigest(ownDigest) || files.stat(selfPath)?.kind !== 'file') return false;
  return (await digestOfFile(platform, selfPath)) !== ownDigest;
}

/** Why an agent that a package put in place of this one will not do; null when it will, or when it is still this one. */
export async function findUnfitAgent(platform: Platform, ownDigest: string): Promise<Outcome | null> {
  if (!(await isReplaced(platform, ownDigest))) return null;
  try {
    await probe(platform, platform.selfPath, null);
    return null;
  } catch (error) {
    return failure(error);
  }
}

async function copyExecutable(platform: Platform, from: string, to: string): Promise<void> {
  const source = platform.files.open(from);
  const target = platform.files.create(to, 0o755);
  try {
    const buffer = new Uint8Array(65_536);
    let inSlice = 0;
    for (let count = source.read(buffer); count > 0; count = source.read(buffer)) {
      target.write(buffer.subarray(0, count));
      inSlice += count;
      if (inSlice < AGENT_SLICE_BYTES) continue;
      inSlice = 0;
      await platform.clock.sleep(0);
    }
    target.setMode(0o755);
    target.sync();
  } finally {
    target.close();
    source.close();
  }
}

/** An executable for another machine, or of another version, is found out before it takes over. */
async function probe(platform: Platform, path: string, version: string | null): Promise<void> {
  const result = await platform.run({ argv: [path, '--version'], timeoutMs: AGENT_PROBE_TIMEOUT_MS });
  const words = result.output.split(/\s+/);
  if (result.exitCode === 0 && (version === null ? words[0] === AGENT_PACKAGE : words.includes(version))) return;
  throw new AgentError(
    'agent-unfit',
    `the new agent does not say that it is ${version ?? AGENT_PACKAGE} but: ${printable(result.output) || 'nothing'}`,
  );
}

/** The running executable stays beside the new one as `.previous`. */
function swapExecutable({ files, selfPath }: Platform, temporary: string): void {
  const previous = `${selfPath}.previous`;
  if (files.stat(previous) !== null) files.remove(previous);
  files.hardLink(selfPath, previous);
  files.rename(temporary, selfPath);
  files.syncFolder(parentOf(selfPath));
}
