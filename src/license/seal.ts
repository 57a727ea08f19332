// Seals bytes for this host: with systemd-creds where it works, else with a key file. What is sealed is bound to its name.
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { chmod, lstat, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeDurably } from '../base/durable-file.ts';
import { describeError } from '../base/errors.ts';
import { LICENSE_TOKEN_BYTES_MAX, VAULT_FILE_BYTES_MAX, VAULT_SEAL_TIMEOUT_MS } from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import { type CommandResult, tryCommand } from '../base/run-command.ts';
import { LicenseError } from './license-error.ts';

/** `systemd-creds`: a key of this host that root alone reads; `key-file`: a key that lies beside what it seals. */
export type SealedBy = 'systemd-creds' | 'key-file';

export type Sealer = {
  readonly sealedBy: SealedBy;
  /** Printable text that only this host opens, and only by the same name. Throws LicenseError `host-fault/vault`. */
  readonly seal: (name: string, plain: Uint8Array) => Promise<string>;
  /** A buffer that the caller zeroes. Throws LicenseError `host-fault/vault`; its message never has a byte of what is sealed. */
  readonly open: (name: string, sealed: string) => Promise<Buffer>;
};

/** What a key file does not protect from, for everybody who lists tokens. */
export const KEY_FILE_WARNING =
  'sealed with a key file that lies beside the tokens: whoever copies the data folder can open them';

/** Of systemd-creds(1). Throws only for a program that could not run or took too long. */
export type RunSealer = (argv: readonly string[], input: Uint8Array) => Promise<CommandResult>;

/** By core(5) a limit of 1 byte also holds where dumps are piped to a program, which one of 0 does not. */
export const withoutCoreDump = (argv: readonly string[]): readonly string[] => ['prlimit', '--core=1:1', ...argv];

/** Neither its arguments nor its environment has a token: that goes through its standard input. */
export const runSystemdCreds: RunSealer = async (argv, input) =>
  await tryCommand(withoutCoreDump(['systemd-creds', ...argv]), {
    input,
    env: { PATH: process.env.PATH ?? '/usr/bin:/bin', LC_ALL: 'C' },
    timeoutMs: VAULT_SEAL_TIMEOUT_MS,
    outputBytesMax: VAULT_FILE_BYTES_MAX,
    purpose: 'sealing or opening a license token',
  });

/** Seals through systemd-creds with the host's key. */
export function makeSystemdSealer(run: RunSealer = runSystemdCreds): Sealer {
  const ask = async (verb: 'encrypt' | 'decrypt', name: string, input: Uint8Array): Promise<string> => {
    const keys = verb === 'encrypt' ? ['--with-key=host'] : [];
    const argv = [verb, `--name=${name}`, '--newline=no', ...keys, '-', '-'];
    const result = await run(argv, input).catch((cause: unknown) => {
      throw sealError(`systemd-creds could not ${verb} ${name}`, cause);
    });
    if (result.exitCode === 0) return result.stdout;
    // Not what it printed to stdout: that may be a part of the token.
    throw sealError(`systemd-creds could not ${verb} ${name}: ${printable(result.stderr.trim(), 300)}`);
  };
  return {
    sealedBy: 'systemd-creds',
    seal: async (name, plain) => (await ask('encrypt', name, plain)).trim(),
    open: async (name, sealed) => Buffer.from(await ask('decrypt', name, Buffer.from(sealed)), 'latin1'),
  };
}

function sealError(message: string, cause?: unknown): LicenseError {
  return new LicenseError('host-fault/vault', message, {
    ...(cause === undefined ? {} : { cause }),
    next: 'if this host was set up anew or its keys are gone, give the token again: pratique license rotate',
  });
}

/** Whether systemd-creds seals and opens here, and keeps to names; null: it does, otherwise why not. */
export async function probeSystemdSealer(run: RunSealer = runSystemdCreds): Promise<string | null> {
  const sealer = makeSystemdSealer(run);
  const sample = Buffer.from(randomBytes(16).toString('hex'));
  try {
    const sealed = await sealer.seal('pratique-probe', sample);
    if (sealed.includes(sample.toString()) || !sample.equals(await sealer.open('pratique-probe', sealed))) {
      return 'systemd-creds does not give back what it sealed';
    }
    const isBound = await sealer.open('pratique-another-probe', sealed).then(
      () => false,
      () => true,
    );
    return isBound ? null : 'systemd-creds does not keep to the names of what it sealed';
  } catch (error) {
    return describeError(error);
  }
}

const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

/** Seals with AES-256-GCM (NIST SP 800-38D) and a key of 32 random bytes in `<folder>/key`, made when something is sealed first. */
export function makeKeyFileSealer(folder: string): Sealer {
  const path = join(folder, 'key');
  return {
    sealedBy: 'key-file',
    seal: async (name, plain) => {
      const key = (await readKey(path)) ?? (await makeKey(path));
      try {
        const nonce = randomBytes(NONCE_BYTES);
        const cipher = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: TAG_BYTES }).setAAD(
          Buffer.from(name),
        );
        return Buffer.concat([nonce, cipher.update(plain), cipher.final(), cipher.getAuthTag()]).toString('base64');
      } finally {
        key.fill(0);
      }
    },
    open: async (name, sealed) => {
      const bytes = Buffer.from(sealed, 'base64');
      const key = await readKey(path);
      if (key === null) throw sealError(`the key ${path} that ${name} is sealed with is gone`);
      try {
        return openWithKey(key, name, bytes);
      } catch (cause) {
        throw sealError(`${name} does not open with ${path}: it or the key was changed`, cause);
      } finally {
        key.fill(0);
      }
    },
  };
}

function openWithKey(key: Buffer, name: string, bytes: Buffer): Buffer {
  const end = bytes.length - TAG_BYTES;
  if (end < NONCE_BYTES || end > NONCE_BYTES + LICENSE_TOKEN_BYTES_MAX) throw new Error('it has no fitting length');
  const decipher = createDecipheriv('aes-256-gcm', key, bytes.subarray(0, NONCE_BYTES), { authTagLength: TAG_BYTES });
  decipher.setAAD(Buffer.from(name)).setAuthTag(bytes.subarray(end));
  const plain = decipher.update(bytes.subarray(NONCE_BYTES, end));
  try {
    decipher.final();
    return plain;
  } catch (cause) {
    plain.fill(0);
    throw cause;
  }
}

/** Null where there is none. One that others may read is closed to them before it is used again. */
async function readKey(path: string): Promise<Buffer | null> {
  try {
    const stats = await lstat(path);
    if (!stats.isFile() || stats.size !== KEY_BYTES) throw sealError(`${path} is not a key of ${KEY_BYTES} bytes`);
    if ((stats.mode & 0o077) !== 0) await chmod(path, 0o600);
    return await readFile(path);
  } catch (cause) {
    if (cause instanceof LicenseError) throw cause;
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
    throw sealError(`${path} cannot be read`, cause);
  }
}

/** On disk before anything is sealed with it. */
async function makeKey(path: string): Promise<Buffer> {
  const key = randomBytes(KEY_BYTES);
  await writeDurably(path, key).catch((cause: unknown) => {
    throw sealError(`${path} cannot be written`, cause);
  });
  return key;
}
