// Remembers that KVM does not work here: trying it takes seconds on hosts whose /dev/kvm hangs, at each start of the daemon.
import { mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Type } from 'typebox';
import type { Clock } from '../../base/clock.ts';
import { KVM_MEMORY_MS } from '../../base/limits.ts';
import type { Log } from '../../base/log.ts';
import { makeParser, parseJson } from '../../base/parse.ts';
import { hostBootId } from '../../base/process-id.ts';
import { type Accelerator, probeAccelerator } from './accel.ts';

export type AcceleratorChoice = {
  readonly qemuBinary: string;
  readonly runFolder: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly kvmDevice?: string;
};

const NOTE = 'host-fault/accelerator';
const parseNote = makeParser(
  Type.Object(
    { format: Type.Literal('pratique.no-kvm/1'), tried: Type.String({ maxLength: 1024 }), atMs: Type.Number() },
    { additionalProperties: false },
  ),
  NOTE,
);

/** What VMs are to use. A "no" counts for a while, unless the host boots again or its /dev/kvm is another. Never throws. */
export async function chooseAccelerator(choice: AcceleratorChoice): Promise<Accelerator> {
  const { qemuBinary, clock, log, kvmDevice = '/dev/kvm' } = choice;
  const path = join(choice.runFolder, 'no-kvm.json');
  const tried = await whatIsTried(qemuBinary, kvmDevice);
  if (tried !== null && (await readNote(path, clock.nowMs())) === tried) {
    log.warn({ remembered: path }, 'KVM did not work here before; VMs are emulated (TCG), which is slow');
    return 'tcg';
  }
  const accelerator = await probeAccelerator(qemuBinary, clock, log, kvmDevice);
  if (accelerator === 'tcg' && tried !== null) await writeNote(path, { tried, atMs: clock.nowMs() }, log);
  return accelerator;
}

/** Everything that the answer depends on; null where there is no device, which is seen at once. */
async function whatIsTried(qemuBinary: string, kvmDevice: string): Promise<string | null> {
  try {
    const { ino, rdev, mode, uid, gid, ctimeMs } = await stat(kvmDevice);
    return JSON.stringify([await hostBootId(), qemuBinary, kvmDevice, ino, rdev, mode, uid, gid, ctimeMs]);
  } catch {
    return null;
  }
}

/** What did not work; null when nothing is known, or too long ago: a busy host may have been too slow for a KVM that works. */
async function readNote(path: string, nowMs: number): Promise<string | null> {
  try {
    const { tried, atMs } = parseNote(parseJson(await readFile(path, 'utf8'), path, NOTE), path);
    return nowMs >= atMs && nowMs - atMs < KVM_MEMORY_MS ? tried : null;
  } catch {
    return null; // Absent or damaged: it is tried again.
  }
}

async function writeNote(
  path: string,
  note: { readonly tried: string; readonly atMs: number },
  log: Log,
): Promise<void> {
  try {
    await mkdir(join(path, '..'), { recursive: true });
    await writeFile(`${path}.new`, JSON.stringify({ format: 'pratique.no-kvm/1', ...note }));
    await rename(`${path}.new`, path);
  } catch (error) {
    log.debug({ err: error }, 'that KVM does not work could not be written down');
  }
}
