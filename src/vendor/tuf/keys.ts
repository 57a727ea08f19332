// The private keys of a TUF repository that we publish: ed25519, one a file, mode 0600, in any number of folders.
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { mkdir, open, readdir, readFile, stat } from 'node:fs/promises';
import { join, relative, resolve } from 'node:path';
import { Key, Signature } from '@tufjs/models';
import { digestOf } from '../../base/digest.ts';
import { canonicalJson } from '../../base/digest-text.ts';
import { syncFolder } from '../../base/durable-file.ts';
import { TUF_KEY_FILES_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';

export const ROLE_NAMES = ['root', 'targets', 'snapshot', 'timestamp'] as const;
export type RoleName = (typeof ROLE_NAMES)[number];

export type SigningKey = {
  readonly id: string;
  readonly secret: KeyObject;
  readonly shown: Key;
  readonly path: string;
};

/** The keys found in some folders. */
export type KeyRing = {
  readonly folders: readonly string[];
  readonly find: (id: string) => SigningKey | null;
  readonly all: () => readonly SigningKey[];
};

/** Who may sign for a role, by key ids, and how many of them must. */
export type Signers = { readonly keyIDs: readonly string[]; readonly threshold: number };

/** The first letters of a key's id: enough to tell the keys of one repository apart. */
export function shortId(id: string): string {
  return printable(id).slice(0, 8);
}

/** TUF 4.2: the id of a key is the SHA-256 of its canonical form. `point`: the 32 bytes of the public key in hex. */
export function keyIdOf(point: string): string {
  return digestOf(canonicalJson({ keytype: 'ed25519', scheme: 'ed25519', keyval: { public: point } }));
}

function signingKey(secret: KeyObject, path: string): SigningKey {
  const point = createPublicKey(secret).export({ format: 'der', type: 'spki' }).subarray(-32).toString('hex');
  const id = keyIdOf(point);
  const shown = new Key({ keyID: id, keyType: 'ed25519', scheme: 'ed25519', keyVal: { public: point } });
  return { id, secret, shown, path };
}

type Signable = { readonly sign: (signer: (data: Buffer) => Signature) => void };

/** Signs metadata with one more key. */
export function signWith(key: SigningKey, metadata: Signable): void {
  metadata.sign((data) => new Signature({ keyID: key.id, sig: sign(null, data, key.secret).toString('hex') }));
}

/**
 * Makes a key durably, before anything is signed with it: `<role>.pem`, or the first of `<role>-2.pem`, `<role>-3.pem` …
 * that does not exist. No file is ever overwritten. Throws VendorError `host-fault/tuf-key` when it cannot be written.
 */
export async function makeKey(folder: string, role: string): Promise<SigningKey> {
  const { privateKey } = generateKeyPairSync('ed25519');
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    for (let number = 1; number <= TUF_KEY_FILES_MAX; number += 1) {
      const path = join(folder, number === 1 ? `${role}.pem` : `${role}-${number}.pem`);
      const file = await open(path, 'wx', 0o600).catch((error: unknown) => {
        if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return null;
        throw error;
      });
      if (file === null) continue;
      await file.writeFile(privateKey.export({ format: 'pem', type: 'pkcs8' }));
      await file.sync();
      await file.close();
      await syncFolder(folder);
      return signingKey(privateKey, path);
    }
  } catch (cause) {
    throw new VendorError('host-fault/tuf-key', `no ${role} key could be made in ${printable(folder, 1_000)}`, {
      cause,
    });
  }
  throw new VendorError(
    'usage/tuf-key',
    `${printable(folder, 1_000)} holds ${TUF_KEY_FILES_MAX} keys of ${role} already`,
  );
}

/**
 * Reads every `*.pem` of the folders. A folder that is not there holds none: an offline key is often not there. Throws
 * VendorError `usage/tuf-key` for a key that others can read.
 */
export async function openKeyRing(folders: readonly string[]): Promise<KeyRing> {
  const keys = new Map<string, SigningKey>();
  for (const folder of folders) {
    const names = (await readdir(folder).catch((): string[] => [])).filter((name) => name.endsWith('.pem')).sort();
    if (names.length > TUF_KEY_FILES_MAX) {
      throw new VendorError('usage/tuf-key', `${printable(folder, 1_000)} holds more than ${TUF_KEY_FILES_MAX} keys`);
    }
    for (const name of names) {
      const key = await readKey(join(folder, name));
      if (!keys.has(key.id)) keys.set(key.id, key);
    }
  }
  return { folders, find: (id) => keys.get(id) ?? null, all: () => [...keys.values()] };
}

async function readKey(path: string): Promise<SigningKey> {
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new VendorError('usage/tuf-key', `the key ${path} cannot be read`, { cause });
  });
  const { mode } = await stat(path);
  if ((mode & 0o077) !== 0) {
    throw new VendorError('usage/tuf-key', `the key ${path} is readable by others than its owner`, {
      next: `chmod 600 ${path}, and rotate the key if others use this machine`,
    });
  }
  try {
    const secret = createPrivateKey(text);
    if (secret.asymmetricKeyType !== 'ed25519') throw new Error('another kind of key');
    return signingKey(secret, path);
  } catch {
    // Without the cause: a parser's message about a private key may quote it.
    throw new VendorError('usage/tuf-key', `${path} is no ed25519 private key in PEM form`, {
      next: 'restore it from a backup, or move it elsewhere if it is something else',
    });
  }
}

/** The keys of a role that are here: at least its threshold. Throws VendorError `usage/tuf-key` that names the missing ones. */
export function signersFor(ring: KeyRing, role: string, signers: Signers): readonly SigningKey[] {
  const here = presentSigners(ring, signers);
  if (here.length >= signers.threshold) return here;
  const missing = signers.keyIDs.filter((id) => ring.find(id) === null).map(shortId);
  const found = here.length === 0 ? 'none is here' : `${here.length} here (${here.map(({ path }) => path).join(', ')})`;
  const folders = printable([...new Set(ring.folders)].join(', ') || 'no folder', 1_000);
  const needs = `${printable(role)} needs ${signers.threshold} of its ${signers.keyIDs.length} keys, ${found}`;
  throw new VendorError('usage/tuf-key', `${needs}; missing: ${missing.join(', ')} (looked in ${folders})`, {
    next: 'give the folders of these keys too, after --keys; `pratique vendor publish show` names who may sign what',
  });
}

/** The keys of a role that are here, however few. */
export function presentSigners(ring: KeyRing, { keyIDs }: Signers): readonly SigningKey[] {
  return keyIDs.flatMap((id) => ring.find(id) ?? []);
}

/** Throws VendorError `usage/tuf-key` when private keys would lie in what is served. */
export function refuseNesting(repository: string, folders: readonly string[]): void {
  for (const folder of folders) {
    const path = relative(resolve(repository), resolve(folder));
    const isInside = path === '' || !(path.startsWith('..') || path.startsWith('/'));
    if (!isInside) continue;
    throw new VendorError('usage/tuf-key', `the keys folder ${folder} lies in the repository that is served`, {
      next: 'keep the private keys somewhere else',
    });
  }
}
