// The vendor "a Debian archive": Debian's own chain of trust from the archive's keys to each package, for the suites of one release.
import { mkdir, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type Clock, trustedNowMs } from '../../base/clock.ts';
import { describeError, PratiqueError } from '../../base/errors.ts';
import { bytesFrom, type HttpFetch, makeHttpFetch } from '../../base/http-fetch.ts';
import {
  CATALOG_NAMES_MAX,
  CHANGELOGS_WAITING_MAX,
  FREE_TEXT_CHARS_MAX,
  NAME_CHARS_MAX,
  RELEASE_ADVISORIES_MAX,
} from '../../base/limits.ts';
import type { Log } from '../../base/log.ts';
import { printable } from '../../base/printable.ts';
import type { InstalledProduct, Inventory } from '../../model/inventory.ts';
import type { Artifact, Kind, Release } from '../../model/release.ts';
import { VendorError } from '../errors.ts';
import type { ByteStream, Offered, Vendor, VendorStatus } from '../vendor.ts';
import { type Catalog, isSecuritySuite, makeCatalog, type Pin } from './catalog.ts';
import { readChangelog } from './changelog.ts';
import { inspectDeb } from './deb-file.ts';
import { defaultKeys, readAptProxy, readAptSources, readHostArch, type Source } from './host-apt.ts';
import { type KeptFiles, openKeptFiles } from './kept-files.ts';
import type { TrustedKeys } from './keyrings.ts';
import { openPackageIndex, type PackageIndex, type SuiteState } from './package-index.ts';
import type { OfferedPackage } from './packages-file.ts';
import { refreshSuites } from './refresh.ts';
import { type Chosen, selectPackages } from './select.ts';
import { signedArchivesOf } from './signed-archives.ts';
import { compareDebianVersions, isDebianVersion } from './version.ts';

export { compareDebianVersions };

export type DebianVendorConfig = {
  readonly name: string;
  /** For example bookworm, bookworm-updates, bookworm-security. */
  readonly suites: readonly string[];
  /** apt's priorities where they differ from the default; the first that matches a version decides. */
  readonly pins?: readonly Pin[];
  /** The archive's root; absent: the archives of the host's own apt configuration. */
  readonly url?: string;
  /** Keyring file, binary or armored; absent: what the host's apt trusts for the source. */
  readonly keyring?: string;
  /** Primary-key fingerprints that may sign; absent: those of the first verified InRelease are pinned. */
  readonly fingerprints?: readonly string[];
  /** Absent: all components that the host's apt has, or main for a `url`. */
  readonly components?: readonly string[];
  /** Debian's word for the guests' architecture; absent: the host's. */
  readonly arch?: string;
};

export type DebianVendorDeps = {
  /** A folder of this vendor's own. */
  readonly folder: string;
  readonly http: HttpFetch;
  readonly clock: Clock;
  readonly metadataAgeMaxMs: number;
  readonly log: Log;
};

type Trouble = VendorStatus['trouble'];

type Debian = {
  readonly config: DebianVendorConfig;
  readonly deps: DebianVendorDeps;
  readonly arch: string;
  readonly index: PackageIndex;
  readonly kept: KeptFiles;
  readonly incoming: string;
  /** What was looked up since the last refresh: VMs have much in common. */
  remembered: Catalog | undefined;
  readonly fetcherFor: (repoUri: string) => Promise<HttpFetch>;
};

const withSlash = (url: string): string => url.replace(/\/*$/, '/');

/** A path below an archive's root, each part quoted: file names carry `+`, `~` and `%`. */
function urlOf(repoUri: string, path: string): string {
  return new URL(path.split('/').map(encodeURIComponent).join('/'), repoUri).href;
}

type Found = {
  readonly sources: readonly Source[];
  readonly missing: readonly { readonly suite: string; readonly error: unknown }[];
};

async function findSources({ config, arch }: Debian): Promise<Found> {
  const own: TrustedKeys | undefined =
    config.keyring === undefined ? undefined : { paths: [config.keyring], embedded: [], fingerprints: [] };
  if (config.url === undefined) {
    const { sources, missing } = await readAptSources(config.suites, arch, config.components);
    return {
      sources: sources.map((source) => ({ ...source, keys: own ?? source.keys })),
      missing: missing === null ? [] : [{ suite: "the host's apt", error: missing }],
    };
  }
  const repoUri = withSlash(config.url);
  const components = config.components ?? ['main'];
  const keys = own ?? (await defaultKeys());
  return { sources: config.suites.map((suite) => ({ suite, repoUri, components, keys })), missing: [] };
}

/** Fingerprints are written with spaces and in lower case by people, without and in upper case by gpgv. */
function configuredPins(config: DebianVendorConfig): readonly string[] | undefined {
  return config.fingerprints?.map((fingerprint) => fingerprint.replace(/\s+/g, '').toUpperCase());
}

/** Throws VendorError `usage/pins` for a pin that can never mean anything. */
function checkPriorities({ name, pins = [], suites }: DebianVendorConfig): void {
  for (const [number, pin] of pins.entries()) {
    const refuse = (what: string): never => {
      throw new VendorError('usage/pins', `pin ${number + 1} of the vendor ${name} ${what}`, {
        next: 'docs/vendor-debian.md says what a pin can be',
      });
    };
    if (pin.packages === undefined && pin.suite === undefined) refuse('names neither packages nor a suite');
    if (pin.packages === undefined && pin.version !== undefined) refuse('names a version without packages');
    if (pin.suite !== undefined && !suites.includes(pin.suite))
      refuse(`names ${pin.suite}, which is none of its suites`);
    if (pin.priority === 0) refuse('has the priority 0, which means nothing');
  }
}

/** The states of the configured suites that have packages; others were verified once and only forbid going back. */
function statesOf({ config, index }: Debian): ReadonlyMap<string, SuiteState> {
  const states = index.suites().filter(({ suite, indexKey }) => config.suites.includes(suite) && indexKey !== '');
  return new Map(states.map((state) => [state.suite, state]));
}

function catalogOf(debian: Debian): Catalog {
  const { config, index, arch, remembered } = debian;
  if (remembered !== undefined && remembered.size() <= CATALOG_NAMES_MAX) return remembered;
  const suites = new Map([...statesOf(debian).values()].map(({ suite, automatic }) => [suite, automatic]));
  const made = makeCatalog(index, { arch, suites, pins: config.pins ?? [] });
  debian.remembered = made;
  return made;
}

function statusOf(debian: Debian, trouble: Trouble): VendorStatus {
  const { config, deps } = debian;
  const states = [...statesOf(debian).values()];
  const isComplete = states.length === new Set(config.suites).size;
  const checkedAtMs = isComplete ? Math.min(...states.map((state) => state.checkedAtMs)) : null;
  const nowMs = trustedNowMs(deps.clock);
  const isValid = states.every(({ validUntilMs }) => validUntilMs === null || nowMs <= validUntilMs);
  const isYoung = checkedAtMs !== null && nowMs - checkedAtMs <= deps.metadataAgeMaxMs;
  return { vendor: config.name, checkedAtMs, isFresh: isValid && isYoung, trouble };
}

type ReleaseParts = Pick<Chosen, 'offer' | 'kind' | 'requires'> & { readonly advisories: readonly string[] };

function releaseOf(vendor: string, { offer, kind, requires, advisories }: ReleaseParts): Release {
  const isKernel = offer.name.startsWith('linux-image-');
  return {
    vendor,
    ecosystem: 'debian',
    product: offer.name,
    version: offer.version,
    arch: offer.arch,
    kind,
    requires: requires.map(({ product, range }) => ({ product, range: printable(range, NAME_CHARS_MAX) })),
    advisories: [...advisories],
    ...(offer.summary === '' ? {} : { summary: offer.summary }),
    artifact: {
      name: basename(offer.filename),
      digest: offer.digest,
      sizeBytes: offer.sizeBytes,
      // The suite tells the archive apart: the security archive is not the main one. It outlives the index's next version.
      location: `${offer.suite}/${offer.filename}`,
    },
    install: isKernel ? { action: 'debian-package', reboot: true } : { action: 'debian-package' },
  };
}

/** Whether the suites are those of the guest's Debian release: `bookworm`, `bookworm-…`, or `stable` as long as that is it. */
function fitsGuest({ config, arch, index }: Debian, { os }: Inventory): boolean {
  if (os.id !== 'debian' || os.arch !== arch || os.codename === undefined) return false;
  const states = new Map(index.suites().map((state) => [state.suite, state]));
  return config.suites.every((suite) => {
    const codename = states.get(suite)?.codename || suite;
    return codename.replace(/[-/].*$/, '') === os.codename;
  });
}

/** A source package and its version, as written in a package's Source field or by the agent; its own where there is none. */
function sourceOf({ name, version, source }: { name: string; version: string; source: string | undefined }) {
  const [sourceName, sourceVersion] = (source ?? '').split(' ');
  const isTold = sourceName !== undefined && sourceName !== '';
  return { name: isTold ? sourceName : name, version: (isTold ? sourceVersion : undefined) ?? version };
}

/** What the changelogs read so far say was mended above the installed version, up to the offered one. */
function advisoriesFor(
  index: PackageIndex,
  offer: OfferedPackage,
  installed: InstalledProduct | undefined,
): readonly string[] {
  if (installed === undefined) return [];
  const [to, from] = [
    sourceOf(offer),
    sourceOf({ name: installed.product, version: installed.version, source: installed.source }),
  ];
  if (!isDebianVersion(from.version)) return [];
  const between = index
    .advisoriesOf(to.name)
    .filter(({ version }) => compareDebianVersions(version, from.version) > 0)
    .filter(({ version }) => compareDebianVersions(version, to.version) <= 0);
  return [...new Set(between.map(({ advisory }) => advisory))].sort().slice(0, RELEASE_ADVISORIES_MAX);
}

/** What the guest says is installed is no fault of the vendor's. Throws VendorError `guest-fault/version`. */
function checkVersions({ products }: Inventory): void {
  const odd = products.find(({ ecosystem, version }) => ecosystem === 'debian' && !isDebianVersion(version));
  if (odd === undefined) return;
  const what = printable(`${odd.product} at "${odd.version}"`);
  throw new VendorError('guest-fault/version', `the guest reports ${what}, which is no Debian version`, {
    next: 'look at the dpkg status of the guest',
  });
}

function latestFor(debian: Debian, inventory: Inventory): Offered {
  const { config, index } = debian;
  if (!fitsGuest(debian, inventory)) return { releases: [], leftOut: [] };
  if (statusOf(debian, null).checkedAtMs === null) {
    // An empty answer would read as "nothing newer", and the VM would be plugged in.
    throw new VendorError(
      'vendor-ill/never-checked',
      `the metadata of ${config.name} has never been fetched completely`,
      { next: `run \`pratique vendor check ${config.name}\`` },
    );
  }
  checkVersions(inventory);
  const { chosen, leftOut } = selectPackages(inventory.products, catalogOf(debian));
  const installed = new Map(inventory.products.map((product) => [product.product, product]));
  return {
    releases: chosen.map((one) =>
      releaseOf(config.name, { ...one, advisories: advisoriesFor(index, one.offer, installed.get(one.offer.name)) }),
    ),
    leftOut: leftOut.map(({ name, reason, ...rest }) => ({
      vendor: config.name,
      ecosystem: 'debian',
      product: name,
      ...rest,
      reason: printable(reason, FREE_TEXT_CHARS_MAX),
    })),
  };
}

/** Each package's candidate for a VM that does not have it. */
function* candidatesOf(debian: Debian): Generator<OfferedPackage> {
  const { config, index, arch } = debian;
  const suites = new Map([...statesOf(debian).values()].map(({ suite, automatic }) => [suite, automatic]));
  let same: OfferedPackage[] = [];
  const candidate = (): readonly OfferedPackage[] => {
    const lookup = { byName: () => same, mentioning: () => [] };
    const found = makeCatalog(lookup, { arch, suites, pins: config.pins ?? [] }).candidate(
      same[0]?.name ?? '',
      undefined,
    );
    return found === undefined ? [] : [found];
  };
  for (const offer of index.all()) {
    if (same[0] !== undefined && same[0].name !== offer.name) {
      yield* candidate();
      same = [];
    }
    same.push(offer);
  }
  yield* candidate();
}

function allOffers(debian: Debian): readonly Release[] {
  const { config, index } = debian;
  const advised = new Set(index.advisedSources());
  const releases: Release[] = [];
  for (const offer of candidatesOf(debian)) {
    const source = sourceOf(offer);
    const known = advised.has(source.name) ? index.advisoriesOf(source.name) : [];
    const advisories = known.filter(({ version }) => version === source.version).map(({ advisory }) => advisory);
    const kind: Kind = isSecuritySuite(offer.suite) ? 'security' : 'fix';
    const parts = { offer, kind, requires: [], advisories: advisories.slice(0, RELEASE_ADVISORIES_MAX) };
    releases.push(releaseOf(config.name, parts));
  }
  return releases;
}

async function openArtifact(
  debian: Debian,
  artifact: Artifact,
  offsetBytes: number,
  signal?: AbortSignal,
): Promise<ByteStream> {
  const { location, sizeBytes } = artifact;
  const known = debian.index.suites().filter(({ suite }) => location.startsWith(`${suite}/`));
  const state = known.sort((a, b) => b.suite.length - a.suite.length)[0];
  if (state === undefined) {
    throw new VendorError('not-found/artifact', `${debian.config.name} has no archive for ${location}`, {
      next: `run \`pratique vendor check ${debian.config.name}\``,
    });
  }
  const http = await debian.fetcherFor(state.repoUri);
  const url = urlOf(state.repoUri, location.slice(state.suite.length + 1));
  const options = { offsetBytes, sizeBytesMax: sizeBytes, ...(signal === undefined ? {} : { signal }) };
  return bytesFrom(await http.open(url, options), offsetBytes);
}

/** Uses the given fetcher, or one through apt's proxy for archives that the host's apt reaches by a proxy. */
function makeFetchers(config: DebianVendorConfig, deps: DebianVendorDeps) {
  const proxied = new Map<string, HttpFetch>();
  return {
    fetcherFor: async (repoUri: string): Promise<HttpFetch> => {
      const proxyUrl = config.url === undefined ? await readAptProxy(repoUri) : undefined;
      if (proxyUrl === undefined) return deps.http;
      const made = proxied.get(proxyUrl) ?? makeHttpFetch({ clock: deps.clock, log: deps.log, proxyUrl });
      proxied.set(proxyUrl, made);
      return made;
    },
    close: async (): Promise<void> => {
      for (const fetcher of proxied.values()) await fetcher.close();
    },
  };
}

/** Reads the changelogs of downloaded packages one after the other, beside everything else: nobody waits for what is for people only. */
function makeChangelogReader({ config, deps, index }: Debian, inTurn: (write: () => void) => Promise<void>) {
  let waiting = 0;
  let isClosed = false;
  let last: Promise<void> = Promise.resolve();
  const read = async (name: string, path: string): Promise<void> => {
    try {
      const changelog = isClosed ? undefined : await readChangelog(path, name, deps.clock);
      if (changelog !== undefined) await inTurn(() => index.addAdvisories(changelog.source, changelog.entries));
    } catch (error) {
      deps.log.warn(
        { vendor: config.name, package: name, problem: describeError(error) },
        'a changelog cannot be read',
      );
    } finally {
      waiting -= 1;
    }
  };
  return {
    push: (name: string, path: string): void => {
      if (waiting >= CHANGELOGS_WAITING_MAX) return;
      waiting += 1;
      last = last.then(() => read(name, path));
    },
    close: async (): Promise<void> => {
      isClosed = true;
      await last;
    },
  };
}

/**
 * Makes the vendor over the metadata verified earlier, if there is any; nothing is fetched before `refresh`.
 * Throws VendorError `host-unfit/…` when the host's architecture cannot be told, `usage/pins` for pins that mean nothing.
 */
export async function makeDebianVendor(config: DebianVendorConfig, deps: DebianVendorDeps): Promise<Vendor> {
  checkPriorities(config);
  const arch = config.arch ?? (await readHostArch());
  const incoming = join(deps.folder, 'incoming');
  await rm(incoming, { recursive: true, force: true }); // What a crash left half fetched.
  await mkdir(incoming, { recursive: true, mode: 0o700 });
  const fetchers = makeFetchers(config, deps);
  const kept = await openKeptFiles(join(deps.folder, 'signed'), incoming);
  const index = openPackageIndex(join(deps.folder, `packages-${arch}.sqlite`), deps.clock);
  const debian: Debian = {
    config,
    deps,
    arch,
    index,
    kept,
    incoming,
    remembered: undefined,
    fetcherFor: fetchers.fetcherFor,
  };
  let trouble: Trouble = null;
  // What writes to the index does so in turn: an import is one long transaction.
  let turn: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(work: () => T | Promise<T>): Promise<T> => {
    const mine = turn.then(work);
    turn = mine.catch(() => {});
    return mine;
  };
  const changelogs = makeChangelogReader(debian, inTurn);

  const closing = new AbortController();

  const refresh = async (asked?: AbortSignal): Promise<VendorStatus> => {
    const signal = asked === undefined ? closing.signal : AbortSignal.any([closing.signal, asked]);
    const { fetcherFor } = fetchers;
    const { clock, log } = deps;
    const pinned = configuredPins(config);
    try {
      const { sources, missing } = await findSources(debian);
      await refreshSuites(
        { vendor: config.name, arch, pinned, index, kept, scratchFolder: incoming, fetcherFor, clock, log },
        sources,
        missing,
        signal,
      );
      trouble = null;
    } catch (error) {
      const code = error instanceof PratiqueError ? error.code : 'internal/bug';
      if (!signal.aborted) trouble = { code, message: describeError(error) };
      throw error;
    } finally {
      debian.remembered = undefined;
    }
    return statusOf(debian, trouble);
  };

  return {
    name: config.name,
    kind: 'debian-apt',
    ecosystem: 'debian',
    // One at a time; the second finds everything unchanged.
    refresh: ({ signal }) => inTurn(() => refresh(signal)),
    status: () => statusOf(debian, trouble),
    latest: async (inventory) => latestFor(debian, inventory),
    offers: async () => allOffers(debian),
    compareVersions: compareDebianVersions,
    open: (artifact, offsetBytes, signal) => openArtifact(debian, artifact, offsetBytes, signal),
    inspect: async (release, path) => {
      await inspectDeb(path, { name: release.product, version: release.version, arch: release.arch ?? '' });
      changelogs.push(release.product, path);
    },
    signedArchives: (releases) => signedArchivesOf(releases, { index, kept, suites: statesOf(debian) }),
    close: async () => {
      // What a slow mirror is still sending is not waited for; the import it was for is undone as a whole.
      closing.abort(new VendorError('host-fault/closing', `vendor ${config.name} is being closed`));
      await changelogs.close();
      await turn;
      await fetchers.close();
      index.close();
    },
  };
}
