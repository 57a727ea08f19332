// The host's signing key for audit records: ed25519, made on first use, readable by its owner only.
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { writeDurably } from '../base/durable-file.ts';
import { AuditError } from './error.ts';

export type HostKey = {
  /** PEM (SPKI), for whoever verifies elsewhere. */
  readonly publicPem: string;
  /** Base64 signature of the text. */
  readonly sign: (text: string) => string;
  readonly isSigned: (text: string, signature: string) => boolean;
};

const PRIVATE_FILE = 'audit-key.pem';
const PUBLIC_FILE = 'audit-key.pub';

/** Reads the key of the folder, or makes one when `mayMake`. Throws AuditError when it is missing, damaged or open to others. */
export async function openHostKey(folder: string, options: { readonly mayMake: boolean }): Promise<HostKey> {
  const path = join(folder, PRIVATE_FILE);
  const found = await readPrivateKey(path);
  if (found !== null) return hostKey(found);
  if (!options.mayMake) {
    throw new AuditError('host-fault/audit-key-missing', `the key ${path} of an existing audit chain is gone`, {
      next: 'restore it from the backup, or move the old audit folder away and keep it',
    });
  }
  const { privateKey } = generateKeyPairSync('ed25519');
  const made = hostKey(privateKey);
  await writeDurably(join(folder, PUBLIC_FILE), made.publicPem, 0o644);
  await writeDurably(path, privateKey.export({ type: 'pkcs8', format: 'pem' }), 0o600);
  return made;
}

async function readPrivateKey(path: string): Promise<KeyObject | null> {
  let pem: string;
  try {
    const { mode } = await stat(path);
    if ((mode & 0o077) !== 0) {
      throw new AuditError('host-unfit/audit-key-open', `the audit key ${path} can be read by others`, {
        next: `chmod 600 ${path}, and replace the key if somebody may have read it`,
      });
    }
    pem = await readFile(path, 'utf8');
  } catch (cause) {
    if (cause instanceof AuditError) throw cause;
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
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

function hostKey(privateKey: KeyObject): HostKey {
  const publicKey = createPublicKey(privateKey);
  return {
    publicPem: publicKey.export({ type: 'spki', format: 'pem' }).toString(),
    sign: (text) => sign(null, Buffer.from(text), privateKey).toString('base64'),
    isSigned: (text, signature) => verify(null, Buffer.from(text), publicKey, Buffer.from(signature, 'base64')),
  };
}
