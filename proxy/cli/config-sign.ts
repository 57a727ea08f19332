// pratique config sign: makes a document that a configuration server serves for one VM. Needs no daemon.
import { readFile, stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { isoTime } from '../../src/base/clock.ts';
import type { SigningKey } from '../../src/base/dsse.ts';
import { writeDurably } from '../../src/base/durable-file.ts';
import { CONFIG_FILE_BYTES_MAX } from '../../src/base/limits.ts';
import { printable } from '../../src/base/printable.ts';
import { GuestConfigError } from '../../src/guest-config/error.ts';
import { readText } from '../../src/guest-config/read-text.ts';
import { DOCUMENT_FORMAT, sealDocument, signingKey } from '../../src/guest-config/server-document.ts';
import { durationMs } from '../duration.ts';
import type { Context } from './context.ts';

export type SignOptions = {
  readonly key: string;
  readonly vm: string;
  readonly out: string;
  readonly expires: string;
  readonly serial?: string;
};

/** Signs a file of values and items. Throws GuestConfigError `usage/guest-config`; then nothing is written. */
export async function signConfig({ output, clock }: Context, file: string, options: SignOptions): Promise<void> {
  const key = await readKey(resolve(options.key));
  const path = resolve(file);
  const { value } = readText(await readBounded(path), path);
  const nowMs = clock.nowMs();
  const serial = serialOf(options, nowMs);
  const times = { issuedAt: isoTime(nowMs), expiresAt: isoTime(nowMs + lifeMs(options)) };
  const tables = typeof value === 'object' && value !== null ? value : {};
  const document = { ...tables, format: DOCUMENT_FORMAT, vm: options.vm, serial, ...times };
  const envelope = sealDocument(document, [key]);
  await writeDurably(resolve(options.out), `${JSON.stringify(envelope)}\n`, 0o600);
  const { publicKey } = key;
  const signed = { vm: options.vm, serial, ...times, publicKey, out: resolve(options.out) };
  output.show(signed, () =>
    [
      `${printable(signed.out)}: serial ${serial} for ${printable(options.vm)}, until ${times.expiresAt}`,
      `public key: ${publicKey}`,
    ].join('\n'),
  );
}

async function readKey(path: string): Promise<SigningKey> {
  const pem = await readBounded(path);
  if (((await stat(path)).mode & 0o077) !== 0) {
    throw new GuestConfigError('usage/guest-config', `${path} is open to others`, { next: `chmod 600 ${path}` });
  }
  return signingKey(pem, path);
}

async function readBounded(path: string): Promise<string> {
  const found = await stat(path).catch(() => null);
  if (found?.isFile() !== true) {
    throw new GuestConfigError('usage/guest-config', `${path}: there is no such file`, { next: 'check the path' });
  }
  if (found.size > CONFIG_FILE_BYTES_MAX) {
    throw new GuestConfigError('usage/guest-config', `${path}: larger than ${CONFIG_FILE_BYTES_MAX} bytes`);
  }
  return await readFile(path, 'utf8');
}

/** Seconds since 1970 grow by themselves. */
function serialOf({ serial }: SignOptions, nowMs: number): number {
  if (serial === undefined) return Math.trunc(nowMs / 1000);
  if (/^[1-9][0-9]{0,14}$/.test(serial)) return Number(serial);
  throw new GuestConfigError('usage/guest-config', `--serial ${printable(serial, 40)} is no whole number above 0`, {
    next: 'leave it out: the time counts then',
  });
}

function lifeMs({ expires }: SignOptions): number {
  const ms = durationMs(expires);
  if (ms !== null && ms > 0) return ms;
  throw new GuestConfigError('usage/guest-config', `--expires ${printable(expires, 40)} is no duration`, {
    next: 'write it as 12h or 30d',
  });
}
