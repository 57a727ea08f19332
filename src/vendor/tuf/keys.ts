// The signing keys of a TUF repository that we publish: one ed25519 key per role, in files of mode 0600 outside of it.
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { mkdir, readFile, rename, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Key, type Root, Signature } from '@tufjs/models';
import { digestOf } from '../../base/digest.ts';
import { canonicalJson } from '../../base/digest-text.ts';
import { syncFolder, writeDurably } from '../../base/durable-file.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';

export const ROLE_NAMES = ['root', 'targets', 'snapshot', 'timestamp'] as const;
export type RoleName = (typeof ROLE_NAMES)[number];

export type SigningKey = { readonly id: string; readonly secret: KeyObject; readonly shown: Key };
export type RoleKeys = Readonly<Record<RoleName, SigningKey>>;

/** TUF 4.2: the id of a key is the SHA-256 of its canonical form. */
function signingKey(secret: KeyObject): SigningKey {
  const point = createPublicKey(secret).export({ format: 'der', type: 'spki' }).subarray(-32).toString('hex');
  const form = { keytype: 'ed25519', scheme: 'ed25519', keyval: { public: point } };
  const id = digestOf(canonicalJson(form));
  return {
    id,
    secret,
    shown: new Key({ keyID: id, keyType: 'ed25519', scheme: 'ed25519', keyVal: { public: point } }),
  };
}

type Signable = { readonly sign: (signer: (data: Buffer) => Signature) => void };

/** Signs metadata with one more key. */
export function signWith(key: SigningKey, metadata: Signable): void {
  metadata.sign((data) => new Signature({ keyID: key.id, sig: sign(null, data, key.secret).toString('hex') }));
}

/** Makes a key file durably before anything is signed with it. */
async function createKey(path: string): Promise<SigningKey> {
  const { privateKey } = generateKeyPairSync('ed25519');
  await writeDurably(path, privateKey.export({ format: 'pem', type: 'pkcs8' }), 0o600);
  return signingKey(privateKey);
}

async function readKey(path: string): Promise<SigningKey | null> {
  let text: string;
  try {
    const { mode } = await stat(path);
    if ((mode & 0o077) !== 0) {
      throw new VendorError('usage/tuf-key', `the key ${path} is readable by others than its owner`, {
        next: `chmod 600 ${path}, and rotate the key if others use this machine`,
      });
    }
    text = await readFile(path, 'utf8');
  } catch (cause) {
    if (cause instanceof VendorError) throw cause;
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
    throw new VendorError('usage/tuf-key', `the key ${path} cannot be read`, { cause });
  }
  try {
    return signingKey(createPrivateKey(text));
  } catch {
    // Without the cause: a parser's message about a private key may quote it.
    throw new VendorError('usage/tuf-key', `${path} is no private key in PEM form`, {
      next: 'restore it from a backup',
    });
  }
}

/** Keys of a new repository; keys that already lie there are used (a first publish that was interrupted). */
export async function createKeys(folder: string): Promise<RoleKeys> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const make = async (role: RoleName) => {
    const path = join(folder, `${role}.pem`);
    return (await readKey(path)) ?? (await createKey(path));
  };
  return {
    root: await make('root'),
    targets: await make('targets'),
    snapshot: await make('snapshot'),
    timestamp: await make('timestamp'),
  };
}

/** The keys that the repository's root names. Throws VendorError `usage/tuf-key` when one is missing. */
export async function loadKeys(folder: string, root: Root): Promise<RoleKeys> {
  const load = async (role: RoleName) => {
    const ids = root.roles[role]?.keyIDs ?? [];
    const key = await readKey(join(folder, `${role}.pem`));
    if (key !== null && ids.includes(key.id)) return key;
    // A rotation that was interrupted after its root was published has not put the next key in place yet.
    const next = await readKey(join(folder, `${role}.next.pem`));
    if (next !== null && ids.includes(next.id)) {
      await adoptNextKey(folder, role);
      return next;
    }
    throw new VendorError('usage/tuf-key', `${printable(folder)} holds no ${role} key of this repository`, {
      next: 'give the keys folder this repository was first published with',
    });
  };
  return {
    root: await load('root'),
    targets: await load('targets'),
    snapshot: await load('snapshot'),
    timestamp: await load('timestamp'),
  };
}

/** A new key for a role, not yet in force: `adoptKey` makes it the role's key once the root that names it is published. */
export async function createNextKey(folder: string, role: RoleName): Promise<SigningKey> {
  return await createKey(join(folder, `${role}.next.pem`));
}

/** Puts the next key in the place of the old one. */
export async function adoptNextKey(folder: string, role: RoleName): Promise<void> {
  await rename(join(folder, `${role}.next.pem`), join(folder, `${role}.pem`));
  await syncFolder(folder);
}
