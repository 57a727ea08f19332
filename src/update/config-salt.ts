// Salts of the configuration on drives: the same again for the same drive, also after the daemon died, and known to nobody else.
import { createHmac, randomBytes } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Digest } from '../base/digest-text.ts';
import { writeDurably } from '../base/durable-file.ts';
import type { RunId, VmId } from '../model/ids.ts';

/** The salt of one item on the drive of one run. */
export type ConfigSalt = (vm: VmId, run: RunId, item: string) => Digest;

const KEY_BYTES = 32;

/** Salts by a key of this host, kept in the folder. A damaged key is made anew: then drives of runs under way are, too. */
export async function openConfigSalt(folder: string): Promise<ConfigSalt> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const path = join(folder, 'drive-salt.key');
  const known = await readFile(path).catch((cause: unknown) => {
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
    throw cause;
  });
  if (known?.length === KEY_BYTES) return saltsBy(known);
  const made = randomBytes(KEY_BYTES);
  await writeDurably(path, made, 0o600);
  return saltsBy(made);
}

/** Salts by a given key. */
export function saltsBy(key: Uint8Array): ConfigSalt {
  // The cast holds: 64 lower-case hex digits are the form of a digest.
  return (vm, run, item) =>
    createHmac('sha256', key)
      .update(JSON.stringify([vm, run, item]))
      .digest('hex') as Digest;
}
