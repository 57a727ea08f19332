// The key with which this host makes versions of items that have none: 32 random bytes, made on first use, of no use to anybody else.
import { createHmac, randomBytes } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { canonicalJson } from '../base/digest-text.ts';
import { writeDurably } from '../base/durable-file.ts';
import type { GuestConfigItem } from '../model/guest-config.ts';
import { GuestConfigError } from './error.ts';

const KEY_BYTES = 32;
const KEY_FILE = 'version.key';
/** 64 bits: nobody can choose contents that meet, for nobody has the key. */
const VERSION_DIGITS = 16;

/**
 * The version of an item's content, with the source's own before it where it has one: what changed is applied even when nobody
 * raised that. A plain digest would let whoever sees a version guess a short secret.
 */
export type VersionOf = (item: Omit<GuestConfigItem, 'version'>, own: string | undefined) => string;

/** Opens the key in a folder of the data folder, making it when there is none. Throws GuestConfigError `host-fault/guest-config`. */
export async function openVersionKey(folder: string): Promise<VersionOf> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const path = join(folder, KEY_FILE);
  const key = (await readKey(path)) ?? (await makeKey(path));
  return (item, own) => {
    const digest = createHmac('sha256', key).update(canonicalJson(item)).digest('hex').slice(0, VERSION_DIGITS);
    return own === undefined ? digest : `${own}+${digest}`;
  };
}

async function readKey(path: string): Promise<Buffer | null> {
  const key = await readFile(path).catch((cause: unknown) => {
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
    throw cause;
  });
  if (key === null || key.length === KEY_BYTES) return key;
  throw new GuestConfigError('host-fault/guest-config', `${path} is damaged: it has ${key.length} bytes`, {
    next: 'remove it; every item of configuration is applied once more then',
  });
}

async function makeKey(path: string): Promise<Buffer> {
  const key = randomBytes(KEY_BYTES);
  await writeDurably(path, key, 0o600);
  return key;
}
