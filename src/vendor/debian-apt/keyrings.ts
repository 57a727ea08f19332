// The keys that may sign a source, in the forms apt knows: keyring files, armored files, keys embedded in a source, fingerprints.
import { open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KEYRING_BYTES_MAX } from '../../base/limits.ts';
import { VendorError } from '../errors.ts';
import type { Signature } from './in-release.ts';

/** What sources.list(5) calls Signed-By. */
export type TrustedKeys = {
  /** Keyring files, binary or armored. */
  readonly paths: readonly string[];
  /** Armored keys that stand in the source itself. */
  readonly embedded: readonly string[];
  /** If any: only these of the keys, by the fingerprint of the primary key or the subkey; a `!` behind it forbids its subkeys. */
  readonly fingerprints: readonly string[];
};

const BEGIN = '-----BEGIN PGP PUBLIC KEY BLOCK-----';
const BLOCK = /-----BEGIN PGP PUBLIC KEY BLOCK-----([\s\S]*?)-----END PGP PUBLIC KEY BLOCK-----/g;

/** Reads the value of a Signed-By field or option. */
export function parseSignedBy(value: string): TrustedKeys {
  if (value.includes(BEGIN)) {
    // deb822 writes an empty line as a single dot.
    const lines = value.split('\n').map((line) => (line.trim() === '.' ? '' : line.trim()));
    return { paths: [], embedded: [lines.join('\n')], fingerprints: [] };
  }
  const words = value.split(/[\s,]+/);
  return {
    paths: words.filter((word) => word.startsWith('/')),
    embedded: [],
    // Also a word that is neither: taken out, a mistyped fingerprint would let every key of the host's sign. So it allows none.
    fingerprints: words.filter((word) => word !== '' && !word.startsWith('/')).map((word) => word.toUpperCase()),
  };
}

/** The binary form of armored keys (RFC 4880 6.2), undefined where there are none. The checksum is not looked at: gpgv reads the key. */
export function dearmor(text: string): Uint8Array | undefined {
  const keys = [...text.matchAll(BLOCK)].map(([, block]) => {
    const lines = (block ?? '').split(/\r?\n/).map((line) => line.trim());
    const blank = lines.indexOf('', 1);
    const base64 = lines.slice(blank + 1).filter((line) => line !== '' && !line.startsWith('='));
    return Buffer.from(base64.join(''), 'base64');
  });
  return keys.length === 0 ? undefined : Buffer.concat(keys);
}

async function readKeyring(path: string): Promise<Buffer> {
  try {
    const file = await open(path, 'r');
    try {
      const { size } = await file.stat();
      if (size > KEYRING_BYTES_MAX) throw new Error(`it is larger than ${KEYRING_BYTES_MAX} bytes`);
      return await file.readFile();
    } finally {
      await file.close();
    }
  } catch (cause) {
    throw new VendorError('host-unfit/no-keyring', `the keyring ${path} cannot be read`, {
      cause,
      next: 'install the package that brings it (Debian: debian-archive-keyring), or configure `keyring` for this vendor',
    });
  }
}

/** Files that gpgv can read; armored keys are written to the folder in binary form. Throws VendorError `host-unfit/no-keyring`. */
export async function keyringFiles(keys: TrustedKeys, folder: string): Promise<readonly string[]> {
  const files: string[] = [];
  const add = async (bytes: Uint8Array): Promise<void> => {
    const path = join(folder, `keyring-${files.length}.gpg`);
    await writeFile(path, bytes, { mode: 0o600 });
    files.push(path);
  };
  for (const path of keys.paths) {
    const bytes = await readKeyring(path);
    const binary = bytes.includes(BEGIN) ? dearmor(bytes.toString('latin1')) : undefined;
    if (binary === undefined) files.push(path);
    else await add(binary);
  }
  for (const text of keys.embedded) await add(dearmor(text) ?? new Uint8Array());
  if (files.length > 0) return files;
  throw new VendorError('host-unfit/no-keyring', 'this host has no key by which the archive could be verified', {
    next: 'install the package debian-archive-keyring, or configure `keyring` for this vendor',
  });
}

/** The signatures that a source's Signed-By fingerprints allow. */
export function allowedSignatures(signatures: readonly Signature[], keys: TrustedKeys): readonly Signature[] {
  if (keys.fingerprints.length === 0) return signatures;
  return signatures.filter(
    ({ key, primary }) =>
      keys.fingerprints.includes(key) || keys.fingerprints.includes(`${key}!`) || keys.fingerprints.includes(primary),
  );
}
