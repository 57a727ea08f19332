// Brings the suites of one vendor up to date: verified InRelease, age, indexes by digest. One suite that fails stops no other.
import { type Clock, isoTime, trustedNowMs } from '../../base/clock.ts';
import { describeError, type ErrorCode, PratiqueError } from '../../base/errors.ts';
import { type HttpFetch, isUnreachable } from '../../base/http-fetch.ts';
import {
  ARCHIVE_DATE_AHEAD_MAX_MS,
  FREE_TEXT_CHARS_MAX,
  INDEX_BYTES_MAX,
  INDEX_UNPACKED_BYTES_MAX,
  METADATA_BYTES_MAX,
} from '../../base/limits.ts';
import type { Log } from '../../base/log.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import type { Source } from './host-apt.ts';
import {
  type IndexEntry,
  parseSuiteRelease,
  type Signature,
  type SuiteRelease,
  type VerifiedText,
  verifyClearSigned,
} from './in-release.ts';
import type { KeptFiles } from './kept-files.ts';
import { allowedSignatures, keyringFiles } from './keyrings.ts';
import type { PackageIndex, SuiteState } from './package-index.ts';
import type { Compression, IndexFile } from './unpack.ts';

export type RefreshDeps = {
  readonly vendor: string;
  readonly arch: string;
  /** Primary-key fingerprints from the configuration. */
  readonly pinned: readonly string[] | undefined;
  readonly index: PackageIndex;
  readonly kept: KeptFiles;
  readonly scratchFolder: string;
  readonly fetcherFor: (repoUri: string) => Promise<HttpFetch>;
  readonly clock: Clock;
  readonly log: Log;
};

type WantedIndex = {
  /** Below the suite's folder. */
  readonly path: string;
  readonly entry: IndexEntry;
  readonly file: Omit<IndexFile, 'path'>;
};

const SUFFIXES: readonly (readonly [string, Compression])[] = [
  ['.xz', 'xz'],
  ['.gz', 'gzip'],
  ['', 'none'],
];

/** The keys that may sign from now on. Throws VendorError when none of the known ones did. */
function checkPins(
  signatures: readonly Signature[],
  pinned: readonly string[] | undefined,
  isConfigured: boolean,
  what: string,
): readonly string[] {
  const found = [...new Set(signatures.map(({ primary }) => primary))];
  if (pinned === undefined) return found;
  if (found.some((fingerprint) => pinned.includes(fingerprint))) {
    // A known key vouches for what the new one signed too: that is how an archive changes its keys.
    return [...new Set([...pinned, ...found])];
  }
  throw new VendorError(
    'vendor-ill/key-changed',
    `${what} is signed by ${found.join(', ')}, not by a key pinned for it (${pinned.join(', ')})`,
    {
      next: isConfigured
        ? 'ask the vendor which keys are right; then correct `fingerprints` of this vendor'
        : 'ask the vendor whether its keys changed; then remove this vendor and add it again',
    },
  );
}

/** Refuses what is older than what we have, what is dated ahead of our clock, and what is past its own date. */
function checkAge(
  release: Pick<SuiteRelease, 'dateMs' | 'validUntilMs'>,
  known: SuiteState | undefined,
  nowMs: number,
  what: string,
): void {
  if (known !== undefined && release.dateMs < known.dateMs) {
    throw new VendorError(
      'vendor-ill/rollback',
      `${what} is validly signed but old: it is of ${isoTime(release.dateMs)}, and one of ${isoTime(known.dateMs)} was verified before`,
      { next: 'wait for the mirror to catch up, or use another one' },
    );
  }
  if (release.dateMs > nowMs + ARCHIVE_DATE_AHEAD_MAX_MS) {
    throw new VendorError(
      'vendor-ill/not-yet-valid',
      `${what} is dated ${isoTime(release.dateMs)}, but here it is ${isoTime(nowMs)}`,
      { next: "check this host's clock" },
    );
  }
  if (release.validUntilMs === null || nowMs <= release.validUntilMs) return;
  const kept =
    known === undefined
      ? 'there is nothing older to keep'
      : `what was verified on ${isoTime(known.checkedAtMs)} is kept`;
  throw new VendorError(
    'vendor-ill/expired',
    `the mirror is stale: ${what} is of ${isoTime(release.dateMs)} and was valid until ${isoTime(release.validUntilMs)}; ${kept}`,
    { next: "check this host's clock; if it is right, the mirror is no longer updated: wait, or use another one" },
  );
}

function findIndex(release: SuiteRelease, source: Source, component: string, arch: string): WantedIndex | undefined {
  const plainPath = `${component}/binary-${arch}/Packages`;
  for (const [suffix, compression] of SUFFIXES) {
    const entry = release.entries.get(plainPath + suffix);
    if (entry === undefined) continue;
    if (entry.sizeBytes > INDEX_BYTES_MAX) {
      const message = `the index ${plainPath} of ${source.suite} is larger than ${INDEX_BYTES_MAX} bytes`;
      throw new VendorError('vendor-ill/too-large', message);
    }
    const unpackedBytesMax = release.entries.get(plainPath)?.sizeBytes ?? INDEX_UNPACKED_BYTES_MAX;
    return { path: plainPath + suffix, entry, file: { component, compression, unpackedBytesMax } };
  }
  return undefined;
}

function findIndexes(release: SuiteRelease, source: Source, arch: string): readonly WantedIndex[] {
  if (source.components.length === 0) {
    throw new VendorError(
      'host-unfit/no-apt-source',
      `this host's apt has none of the configured components of ${source.suite}`,
      {
        next: 'check `components` of this vendor against the apt sources of this host',
      },
    );
  }
  return source.components.flatMap((component) => {
    const own = findIndex(release, source, component, arch);
    const ofAll = release.hasIndexOfAll ? findIndex(release, source, component, 'all') : undefined;
    if (own !== undefined) return ofAll === undefined ? [own] : [own, ofAll];
    throw new VendorError('vendor-ill/no-index', `${source.suite} offers no packages of ${component} for ${arch}`, {
      next: 'check the components and the architecture configured for this vendor',
    });
  });
}

/** By hash where the archive offers it: the plain name may already be the next version's while a mirror is updated. */
function indexUrl(source: Source, release: SuiteRelease, wanted: WantedIndex): string {
  const suiteUrl = `${source.repoUri}dists/${source.suite}/`;
  if (!release.isByHash) return suiteUrl + wanted.path;
  return `${suiteUrl}${wanted.path.replace(/[^/]*$/, '')}by-hash/SHA256/${wanted.entry.digest}`;
}

/** Whether all that we have of the suite is still here, and from the components wanted now; "not modified" says nothing about others. */
async function isComplete(state: SuiteState, source: Source, kept: KeptFiles): Promise<boolean> {
  const present = new Set(
    state.files.filter(({ path }) => path !== 'InRelease').map(({ path }) => path.replace(/\/binary-.*$/, '')),
  );
  if (state.indexKey === '' || [...present].join(' ') !== source.components.join(' ')) return false;
  for (const file of state.files) if (!(await kept.has(file))) return false;
  return true;
}

async function verify(deps: RefreshDeps, bytes: Uint8Array, source: Source, what: string): Promise<VerifiedText> {
  const keyrings = await keyringFiles(source.keys, deps.scratchFolder);
  const verified = await verifyClearSigned(bytes, what, keyrings, deps.scratchFolder);
  const signatures = allowedSignatures(verified.signatures, source.keys);
  if (signatures.length > 0) return { ...verified, signatures };
  const keys = verified.signatures.map(({ primary }) => primary).join(', ');
  throw new VendorError(
    'vendor-ill/signature',
    `${what} is signed by ${keys}, which Signed-By of its source does not allow`,
    {
      next: "check Signed-By in the host's apt sources, and the mirror",
    },
  );
}

/** Brings one suite up to date; on any error its last verified state stays as it was. */
async function refreshSuite(deps: RefreshDeps, source: Source, signal?: AbortSignal): Promise<void> {
  const { index, kept, clock } = deps;
  const { suite, repoUri } = source;
  const what = `the InRelease of ${suite}`;
  // Also that of another mirror: a suite's date never goes back, wherever it comes from.
  const known = index.suites().find((state) => state.suite === suite);
  const isSame = known !== undefined && known.repoUri === repoUri && (await isComplete(known, source, kept));
  const http = await deps.fetcherFor(repoUri);
  const fetched = await http.fetchBytes(`${repoUri}dists/${suite}/InRelease`, {
    sizeBytesMax: METADATA_BYTES_MAX,
    ...(isSame && known.etag !== null ? { ifNoneMatch: known.etag } : {}),
    ...(signal === undefined ? {} : { signal }),
  });
  const checkedAtMs = trustedNowMs(clock);
  if (fetched.status === 'not-modified' && isSame) {
    checkAge(known, known, checkedAtMs, what);
    index.setState({ ...known, checkedAtMs });
    return;
  }
  const verified = await verify(deps, fetched.bytes, source, what);
  const fingerprints = checkPins(
    verified.signatures,
    deps.pinned ?? known?.fingerprints,
    deps.pinned !== undefined,
    what,
  );
  const release = parseSuiteRelease(verified.body, suite, what);
  checkAge(release, known, checkedAtMs, what);
  const wanted = findIndexes(release, source, deps.arch);
  for (const one of wanted) {
    await kept.fetch(http, indexUrl(source, release, one), { ...one.entry, what: `${one.path} of ${suite}` }, signal);
  }
  const inRelease = { path: 'InRelease', ...(await kept.keep(verified.message)) };
  const { codename, automatic, dateMs, validUntilMs } = release;
  const { etag } = fetched;
  const indexKey = wanted.map(({ path, entry }) => `${path}=${entry.digest}`).join(' ');
  const files = [inRelease, ...wanted.map(({ path, entry }) => ({ path, ...entry }))];
  const next = { suite, codename, repoUri, dateMs, validUntilMs, checkedAtMs, etag, fingerprints, automatic };
  const state: SuiteState = { ...next, indexKey, files };
  if (known?.indexKey === indexKey) {
    index.setState(state);
    return;
  }
  const toImport = wanted.map(({ entry, file }) => ({ ...file, path: kept.pathOf(entry.digest) }));
  const packages = await index.replace(state, toImport, signal);
  deps.log.info({ vendor: deps.vendor, suite, packages }, 'package index replaced');
}

type Failure = { readonly suite: string; readonly error: unknown };

/** One error for all that failed: its code is that of the worst, an answer that is wrong being worse than none. */
function summarize(failures: readonly Failure[], suiteCount: number): unknown {
  const bug = failures.find(({ error }) => !(error instanceof PratiqueError));
  if (bug !== undefined || failures.length === 0) return bug?.error;
  const worst = failures.find(({ error }) => !isUnreachable(error)) ?? failures[0];
  const code: ErrorCode = worst?.error instanceof PratiqueError ? worst.error.code : 'internal/bug';
  const said = failures.map(({ suite, error }) => `${suite}: ${describeError(error)}`).join('; ');
  const rest = failures.length < suiteCount ? ' (the others were refreshed)' : '';
  const message = `${failures.length} of ${suiteCount} suites could not be refreshed${rest}: ${said}`;
  return new VendorError(code, printable(message, FREE_TEXT_CHARS_MAX));
}

/** Removes the files that no suite names any more. What the last refresh replaced stays until the next, for drives being built. */
async function prune({ index, kept }: RefreshDeps): Promise<void> {
  await kept.prune(new Set(index.suites().flatMap(({ files }) => files.map(({ digest }) => digest))));
}

/**
 * All suites, also after one of them failed; then throws one error that names each that did. `missing` are failures known
 * beforehand.
 */
export async function refreshSuites(
  deps: RefreshDeps,
  sources: readonly Source[],
  missing: readonly Failure[],
  signal?: AbortSignal,
): Promise<void> {
  await prune(deps);
  const failures: Failure[] = [...missing];
  for (const source of sources) {
    try {
      await refreshSuite(deps, source, signal);
    } catch (error) {
      signal?.throwIfAborted();
      failures.push({ suite: source.suite, error });
    }
  }
  if (failures.length > 0) throw summarize(failures, sources.length + missing.length);
}
