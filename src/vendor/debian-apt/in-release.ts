// Verifies an InRelease file with gpgv and reads the verified body, and only that.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Digest, isDigest } from '../../base/digest.ts';
import { METADATA_BYTES_MAX } from '../../base/limits.ts';
import { printable, printableBlock } from '../../base/printable.ts';
import { type CommandResult, tryCommand } from '../../base/run-command.ts';
import { VendorError } from '../errors.ts';
import { readStanzas } from './stanzas.ts';

export type VerifiedText = {
  /** What was signed, without whatever the file had around it. */
  readonly body: string;
  /** Fingerprints of the primary keys whose signature is good. */
  readonly fingerprints: readonly string[];
};

export type IndexEntry = { readonly digest: Digest; readonly sizeBytes: number };

export type SuiteRelease = {
  readonly dateMs: number;
  readonly validUntilMs: number | null;
  readonly isByHash: boolean;
  /** Index files by their path below the suite's folder. */
  readonly entries: ReadonlyMap<string, IndexEntry>;
};

/**
 * The primary-key fingerprints of the good signatures in gpgv's status lines (GnuPG doc/DETAILS). A signature is good
 * when it says GOODSIG (not by an expired or revoked key) and VALIDSIG; one BADSIG spoils the file.
 */
export function goodFingerprints(statusText: string): readonly string[] {
  const fingerprints: string[] = [];
  let isGood = false;
  for (const line of statusText.split('\n')) {
    const [prefix, keyword, ...words] = line.split(' ');
    if (prefix !== '[GNUPG:]') continue;
    if (keyword === 'BADSIG') return [];
    if (keyword === 'NEWSIG') isGood = false;
    if (keyword === 'GOODSIG') isGood = true;
    const primary = words.at(-1);
    if (keyword === 'VALIDSIG' && isGood && primary !== undefined) fingerprints.push(primary);
  }
  return fingerprints;
}

async function runGpgv(input: string, output: string, keyrings: readonly string[]): Promise<CommandResult> {
  const options = keyrings.flatMap((keyring) => ['--keyring', keyring]);
  try {
    return await tryCommand(['gpgv', '--status-fd', '1', '--output', output, ...options, input]);
  } catch (cause) {
    throw new VendorError('host-unfit/no-gpgv', 'verifying a Debian archive: gpgv could not run', {
      cause,
      next: 'install the package gpgv',
    });
  }
}

/** How many clear-signed messages start in the text: two validly signed ones in one file are a mix, not a release. */
function countMessages(text: string): number {
  return text.split(/\r?\n/).filter((line) => line.trimEnd() === '-----BEGIN PGP SIGNED MESSAGE-----').length;
}

/**
 * Verifies a clear-signed file. Bytes before and after the signed block do not spoil the signature, so nothing is ever
 * read from the file itself: gpgv writes out what it verified. Throws VendorError `vendor-ill/signature`, `host-unfit/no-gpgv`.
 */
export async function verifyClearSigned(
  bytes: Uint8Array,
  what: string,
  keyrings: readonly string[],
  scratchFolder: string,
): Promise<VerifiedText> {
  const folder = await mkdtemp(join(scratchFolder, 'verify-'));
  try {
    const [input, output] = [join(folder, 'InRelease'), join(folder, 'body')];
    await writeFile(input, bytes);
    const result = await runGpgv(input, output, keyrings);
    const fingerprints = goodFingerprints(result.stdout);
    if (fingerprints.length === 0 || countMessages(Buffer.from(bytes).toString('latin1')) !== 1) {
      const said = printableBlock(result.stderr.trim(), 400);
      throw new VendorError('vendor-ill/signature', `${what} carries no good signature by a trusted key: ${said}`, {
        next: 'check the keyring configured for this vendor, and the mirror',
      });
    }
    return { body: await readFile(output, 'utf8'), fingerprints };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function readTime(text: string | undefined, what: string): number | null {
  if (text === undefined) return null;
  const timeMs = Date.parse(text);
  if (Number.isFinite(timeMs)) return timeMs;
  throw new VendorError('vendor-ill/malformed', `${what}: "${printable(text)}" is no time`);
}

function readEntries(field: string, what: string): ReadonlyMap<string, IndexEntry> {
  const entries = new Map<string, IndexEntry>();
  for (const line of field.split('\n')) {
    const [digest, size, path] = line.trim().split(/\s+/);
    if (digest === undefined || digest === '') continue;
    const sizeBytes = Number(size);
    if (!isDigest(digest) || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0 || path === undefined) {
      throw new VendorError('vendor-ill/malformed', `${what}: the SHA256 entry "${printable(line)}" is malformed`);
    }
    entries.set(path, { digest, sizeBytes });
  }
  return entries;
}

/** Reads a verified Release body and checks that it speaks about the suite we asked for. Throws VendorError. */
export function parseSuiteRelease(body: string, suite: string, what: string): SuiteRelease {
  if (body.length > METADATA_BYTES_MAX) throw new VendorError('vendor-ill/too-large', `${what} is too large`);
  const [stanza] = readStanzas(body, what);
  const names = [stanza?.get('codename'), stanza?.get('suite')];
  if (!names.includes(suite)) {
    const found = printable(names.filter((name) => name !== undefined).join(', ') || 'nothing');
    throw new VendorError('vendor-ill/wrong-suite', `${what} should describe ${suite} but describes ${found}`);
  }
  const dateMs = readTime(stanza?.get('date'), what);
  if (dateMs === null) throw new VendorError('vendor-ill/malformed', `${what} has no date`);
  return {
    dateMs,
    validUntilMs: readTime(stanza?.get('valid-until'), what),
    isByHash: stanza?.get('acquire-by-hash')?.toLowerCase() === 'yes',
    entries: readEntries(stanza?.get('sha256') ?? '', what),
  };
}
