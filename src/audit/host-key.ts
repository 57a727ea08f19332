// The host's signing keys for audit records: ed25519, made on first use, readable by their owner only, changed by a record of the chain.
//
//   rotation:  audit-key.next.pem durable ─► record that names it, signed by both keys ─► renamed to audit-key.pem ─► public files
//   at start:  the chain's last record says which of the two is the key; the other one is finished or thrown away
import { createPrivateKey, createPublicKey, type KeyObject } from 'node:crypto';
import { readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { makePrivatePem, type SigningKey, signingKeyOf, type VerifyKey, verifyKeyOf } from '../base/dsse.ts';
import { syncFolder, writeDurably } from '../base/durable-file.ts';
import { AUDIT_KEYS_MAX } from '../base/limits.ts';
import { AuditError } from './error.ts';
import type { NamedKey } from './record.ts';

export type PublicKey = VerifyKey;
export type HostKey = SigningKey;

const PRIVATE_FILE = 'audit-key.pem';
const NEXT_FILE = 'audit-key.next.pem';
const PUBLIC_FILE = 'audit-key.pub';
/** Every public key that the chain had, oldest first. */
const PUBLICS_FILE = 'audit-keys.pub';

export type OpenKeyOptions = {
  /** The chain is empty: any key will do, and one is made. */
  readonly mayMake: boolean;
  /** Whether this is the key that the chain's last record leaves in force. */
  readonly isCurrent: (key: PublicKey) => boolean;
  /** The keys before it, oldest first, as the chain tells them: for a folder without a list of them. */
  readonly past: () => readonly PublicKey[];
};

/**
 * Reads the key that is in force, finishing or undoing a rotation that was broken off. Makes one when `mayMake`. Throws
 * AuditError when it is missing, another one than the chain's, damaged or open to others.
 */
export async function openHostKey(folder: string, options: OpenKeyOptions): Promise<HostKey> {
  const key = (await adoptNext(folder, options)) ?? (await ownKey(folder, options));
  await writePublicFiles(folder, key, options.past);
  return key;
}

/**
 * The key to rotate to, durable before it is answered. One that an earlier try left is taken again: whether its record
 * reached the disk is known for sure only after a restart, and until then its key must not be lost. Unless it is the one in force:
 * then that rotation is finished first. Throws AuditError when it cannot be.
 */
export async function makeNextKey(folder: string, inForce: PublicKey): Promise<HostKey> {
  const path = join(folder, NEXT_FILE);
  const left = await readPrivateKey(path);
  if (left !== null) {
    const key = hostKey(left);
    if (key.keyid !== inForce.keyid) return key;
    await finishRotation(folder, key).catch((cause: unknown) => {
      throw new AuditError('host-fault/audit-key', 'the rotation before is not finished', {
        cause,
        next: `make sure that ${join(folder, PRIVATE_FILE)} can be written, then rotate again`,
      });
    });
  }
  const pem = makePrivatePem();
  await writeDurably(path, pem, 0o600);
  return hostKey(createPrivateKey(pem));
}

/** Puts the key that a record named into its place; may be broken off anywhere, then the next start goes on. */
export async function finishRotation(folder: string, key: PublicKey): Promise<void> {
  await putInPlace(folder);
  await writePublicFiles(folder, key, () => []);
}

async function putInPlace(folder: string): Promise<void> {
  await rename(join(folder, NEXT_FILE), join(folder, PRIVATE_FILE));
  await syncFolder(folder);
}

/** The public keys of a folder's chain, oldest first. Throws AuditError `not-found/audit-key` when there are none. */
export async function readFolderKeys(folder: string): Promise<readonly PublicKey[]> {
  const path = join(folder, PUBLICS_FILE);
  const pems = (await readText(path)) ?? (await readText(join(folder, PUBLIC_FILE)));
  if (pems !== null) return readPublicKeys(pems, path);
  throw new AuditError('not-found/audit-key', `there is no public key of an audit chain in ${folder}`, {
    next: 'give the key that was kept elsewhere: --key FILE',
  });
}

/** Public keys from PEM text, one after another. Throws AuditError `usage/audit-key` naming `what`. */
export function readPublicKeys(pems: string, what: string): readonly PublicKey[] {
  const blocks = pems.match(/-----BEGIN PUBLIC KEY-----[\s\S]*?-----END PUBLIC KEY-----/g) ?? [];
  if (blocks.length === 0 || blocks.length > AUDIT_KEYS_MAX) throw noKeys(what);
  return blocks.map((pem) => {
    try {
      return publicKeyOf(createPublicKey(pem));
    } catch (cause) {
      throw cause instanceof AuditError ? cause : noKeys(what);
    }
  });
}

/** The key that a record names, null when it names none or another one than it says. */
export function readNamedKey({ keyid, publicKey }: NamedKey): PublicKey | null {
  try {
    const key = publicKeyOf(createPublicKey({ key: Buffer.from(publicKey, 'base64'), format: 'der', type: 'spki' }));
    return key.keyid === keyid && key.publicKey === publicKey ? key : null;
  } catch {
    return null;
  }
}

function noKeys(what: string): AuditError {
  return new AuditError('usage/audit-key', `${what}: no public keys of an audit chain`, {
    next: 'give a copy of audit-keys.pub of the audit folder',
  });
}

/** The key of a rotation whose record is in the chain; what a rotation left that never came to its record is removed. */
async function adoptNext(folder: string, { mayMake, isCurrent }: OpenKeyOptions): Promise<HostKey | null> {
  const path = join(folder, NEXT_FILE);
  const next = await readPrivateKey(path);
  const found = next === null ? null : hostKey(next);
  if (found !== null && !mayMake && isCurrent(found)) {
    await putInPlace(folder);
    return found;
  }
  await rm(path, { force: true });
  await rm(`${path}.new`, { force: true });
  return null;
}

async function ownKey(folder: string, { mayMake, isCurrent }: OpenKeyOptions): Promise<HostKey> {
  const path = join(folder, PRIVATE_FILE);
  const found = await readPrivateKey(path);
  if (found !== null) {
    const key = hostKey(found);
    if (mayMake || isCurrent(key)) return key;
    throw new AuditError(
      'host-fault/audit-key-other',
      `the key ${path} is not the one that the last audit record leaves in force`,
      {
        next: 'restore the whole folder from one backup, or move it away and keep it: a new chain begins',
      },
    );
  }
  if (!mayMake) {
    throw new AuditError('host-fault/audit-key-missing', `the key ${path} of an existing audit chain is gone`, {
      next: 'restore it from the backup, or move the old audit folder away and keep it',
    });
  }
  const pem = makePrivatePem();
  await writeDurably(path, pem, 0o600);
  return hostKey(createPrivateKey(pem));
}

/** Brings the public files to this key. They are copies for people: the chain itself says which keys it had. */
async function writePublicFiles(folder: string, { publicPem }: PublicKey, past: OpenKeyOptions['past']): Promise<void> {
  await writeIfOther(join(folder, PUBLIC_FILE), publicPem);
  const path = join(folder, PUBLICS_FILE);
  const known =
    (await readText(path)) ??
    past()
      .map((key) => key.publicPem)
      .join('');
  await writeIfOther(path, known.includes(publicPem) ? known : known + publicPem);
}

async function writeIfOther(path: string, text: string): Promise<void> {
  if ((await readText(path)) !== text) await writeDurably(path, text, 0o644);
}

async function readText(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    if (isMissing(cause)) return null;
    throw new AuditError('host-fault/audit-key', `reading ${path}`, { cause });
  }
}

async function readPrivateKey(path: string): Promise<KeyObject | null> {
  let pem: string;
  try {
    const { mode } = await stat(path);
    if ((mode & 0o077) !== 0) {
      throw new AuditError('host-unfit/audit-key-open', `the audit key ${path} can be read by others`, {
        next: `chmod 600 ${path}, and rotate the key if somebody may have read it`,
      });
    }
    pem = await readFile(path, 'utf8');
  } catch (cause) {
    if (cause instanceof AuditError) throw cause;
    if (isMissing(cause)) return null;
    throw new AuditError('host-fault/audit-key', `reading the audit key ${path}`, { cause });
  }
  try {
    return createPrivateKey(pem);
  } catch {
    // The engine's error may quote the key; ours must not.
    throw new AuditError('host-fault/audit-key', `the audit key ${path} is not a private key`, {
      next: 'restore it from the backup',
    });
  }
}

function isMissing(cause: unknown): boolean {
  return cause instanceof Error && 'code' in cause && cause.code === 'ENOENT';
}

function hostKey(privateKey: KeyObject): HostKey {
  const key = signingKeyOf(privateKey);
  if (key === null) throw noKeys('a key that is not ed25519');
  return key;
}

function publicKeyOf(key: KeyObject): PublicKey {
  const found = verifyKeyOf(key);
  if (found === null) throw noKeys('a key that is not ed25519');
  return found;
}
