// Debian packages of the peers of a bench: which are missing, and their installation on demand. They are no part of what Pratique needs.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hostArch } from '../../images/kernel.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import type { Say } from './gate-fleet.ts';
import { NotMeasured } from './patch-site.ts';

const LIST = join(import.meta.dirname, 'patch-peers.txt');
const INSTALL_TIMEOUT_MS = 1_800_000;

async function packageNames(list: string): Promise<readonly string[]> {
  const lines = (await readFile(list, 'utf8')).split('\n').filter((line) => /^[a-z0-9]/.test(line));
  return lines.flatMap((line) => {
    const [name = '', only = ''] = line.split(/\s+/);
    return only.startsWith('[') && only !== `[${hostArch()}]` ? [] : [name];
  });
}

async function aptLine(list: string): Promise<readonly string[]> {
  return ['apt-get', 'install', '-y', '--no-install-recommends', ...(await packageNames(list))];
}

/** Installs those of a list as root. No service of theirs is started: the bench runs its own. Throws CommandError. */
export async function installPeers(say: Say, list = LIST): Promise<void> {
  const argv = await aptLine(list);
  say(`peers: ${argv.join(' ')}`);
  // invoke-rc.d(8) starts nothing in runlevel 1.
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive', RUNLEVEL: '1' };
  await runCommand(argv, { purpose: "installing the peers' packages", env, timeoutMs: INSTALL_TIMEOUT_MS });
}

/** Checks that a peer's program is there. Throws NotMeasured with the line that installs it. */
export async function installedPeer(program: string, list = LIST): Promise<void> {
  const found = await tryCommand(['sh', '-c', 'command -v "$1"', 'sh', program]);
  if (found.exitCode === 0) return;
  const line = (await aptLine(list)).join(' ');
  throw new NotMeasured(`${program} is not installed`, `run with --install-peers, or as root: ${line}`);
}
