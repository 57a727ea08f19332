// Verifies an InRelease file with gpgv and reads the verified body, and only that.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Digest, isDigest } from '../../base/digest.ts';
import { METADATA_BYTES_MAX } from '../../base/limits.ts';
import { printable, printableBlock } from '../../base/printable.ts';
import { type CommandResult, tryCommand } from '../../base/run-command.ts';
import { VendorError } from '../errors.ts';
import type { Automatic } from './package-index.ts';
import { readStanzas } from './stanzas.ts';

/** One good signature: the key that made it, and the primary key it belongs to (often the same). */
export type Signature = { readonly key: string; readonly primary: string };

export type VerifiedText = {
  /** The signed message alone, as it stood in the file, without whatever was around it. */
  readonly message: Uint8Array;
  /** What was signed. */
  readonly body: string;
  readonly signatures: readonly Signature[];
};

export type IndexEntry = { readonly digest: Digest; readonly sizeBytes: number };

export type SuiteRelease = {
  /** `bookworm` also for the suite `stable`; the suite's own name where the archive gives none. */
  readonly codename: string;
  readonly dateMs: number;
  readonly validUntilMs: number | null;
  readonly isByHash: boolean;
  readonly automatic: Automatic;
  /** Whether packages for all architectures have an index of their own instead of standing in each architecture's. */
  readonly hasIndexOfAll: boolean;
  /** Index files by their path below the suite's folder. */
  readonly entries: ReadonlyMap<string, IndexEntry>;
};

/**
 * The good signatures in gpgv's status lines (GnuPG doc/DETAILS). A signature is good when it says GOODSIG (not by an
 * expired or revoked key) and VALIDSIG; one BADSIG spoils the file.
 */
export function goodSignatures(statusText: string): readonly Signature[] {
  const signatures: Signature[] = [];
  let isGood = false;
  for (const line of statusText.split('\n')) {
    const [prefix, keyword, ...words] = line.split(' ');
    if (prefix !== '[GNUPG:]') continue;
    if (keyword === 'BADSIG') return [];
    if (keyword === 'NEWSIG') isGood = false;
    if (keyword === 'GOODSIG') isGood = true;
    const [key, primary] = [words[0], words.at(-1)];
    if (keyword === 'VALIDSIG' && isGood && key !== undefined && primary !== undefined)
      signatures.push({ key, primary });
  }
  return signatures;
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

const BEGIN = /^-----BEGIN PGP SIGNED MESSAGE-----[ \t]*\r?$/gm;
const END = /^-----END PGP SIGNATURE-----[ \t]*\r?$/m;

/** The one clear-signed message of a file. Two validly signed ones in one file are a mix, not a release. Throws VendorError. */
export function extractMessage(bytes: Uint8Array, what: string): Uint8Array {
  const text = Buffer.from(bytes).toString('latin1');
  const begins = [...text.matchAll(BEGIN)];
  const start = begins[0]?.index;
  const end = start === undefined ? null : END.exec(text.slice(start));
  if (start !== undefined && end !== null && begins.length === 1) {
    return Buffer.from(`${text.slice(start, start + end.index + end[0].length)}\n`, 'latin1');
  }
  throw new VendorError(
    'vendor-ill/signature',
    begins.length > 1 ? `${what} holds ${begins.length} signed messages instead of one` : `${what} is not signed`,
    { next: 'check the mirror: this is not what an archive serves' },
  );
}

/**
 * Verifies a clear-signed file. Bytes before and after the signed message do not spoil the signature, so only the message is
 * looked at and kept, and its body is what gpgv writes out. Throws VendorError `vendor-ill/signature`, `host-unfit/no-gpgv`.
 */
export async function verifyClearSigned(
  bytes: Uint8Array,
  what: string,
  keyrings: readonly string[],
  scratchFolder: string,
): Promise<VerifiedText> {
  const message = extractMessage(bytes, what);
  const folder = await mkdtemp(join(scratchFolder, 'verify-'));
  try {
    const [input, output] = [join(folder, 'InRelease'), join(folder, 'body')];
    await writeFile(input, message);
    const result = await runGpgv(input, output, keyrings);
    const signatures = goodSignatures(result.stdout);
    if (signatures.length === 0) {
      const said = printableBlock(result.stderr.trim(), 400);
      throw new VendorError('vendor-ill/signature', `${what} carries no good signature by a trusted key: ${said}`, {
        next: 'check the keyring configured for this vendor, and the mirror',
      });
    }
    return { message, body: await readFile(output, 'utf8'), signatures };
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
  const isSaid = (field: string): boolean => stanza?.get(field)?.toLowerCase() === 'yes';
  const architectures = stanza?.get('architectures')?.split(/\s+/) ?? [];
  return {
    codename: stanza?.get('codename') ?? suite,
    dateMs,
    validUntilMs: readTime(stanza?.get('valid-until'), what),
    isByHash: isSaid('acquire-by-hash'),
    automatic: !isSaid('notautomatic') ? 'yes' : isSaid('butautomaticupgrades') ? 'upgrades' : 'no',
    hasIndexOfAll:
      architectures.includes('all') && stanza?.get('no-support-for-architecture-all')?.toLowerCase() !== 'packages',
    entries: readEntries(stanza?.get('sha256') ?? '', what),
  };
}
