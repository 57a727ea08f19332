// Reads from the host's own apt configuration where its Debian archives are, which keys sign them, and its proxy.
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { runCommand, tryCommand } from '../../base/run-command.ts';
import { VendorError } from '../errors.ts';
import { parseSignedBy, type TrustedKeys } from './keyrings.ts';
import { readStanzas, type Stanza } from './stanzas.ts';

/** One suite of one archive. */
export type Source = {
  readonly suite: string;
  /** The archive's root, ending in a slash. */
  readonly repoUri: string;
  readonly components: readonly string[];
  readonly keys: TrustedKeys;
};

type Target = { readonly repoUri: string; readonly suite: string; readonly component: string };

const FORMAT = '$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ARCHITECTURE)';
const APT_FOLDER = '/etc/apt';
const DEBIAN_KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';

const withSlash = (uri: string): string => uri.replace(/\/*$/, '/');
const wordsOf = (text: string | undefined): readonly string[] =>
  (text ?? '').split(/[\s,]+/).filter((word) => word !== '');

/** What apt itself would fetch. It names only suites whose Release it already has: nothing on a host that never ran an update. */
async function readTargets(arch: string): Promise<readonly Target[]> {
  let listing: string;
  try {
    listing = await runCommand(['apt-get', 'indextargets', '--format', FORMAT, 'Created-By: Packages'], {
      purpose: "reading this host's apt sources",
    });
  } catch (cause) {
    throw new VendorError('host-unfit/no-apt-source', "this host's apt sources cannot be read", {
      cause,
      next: 'give this vendor a `url` and a `keyring` of its own',
    });
  }
  const targets: Target[] = [];
  for (const line of listing.split('\n')) {
    const [repoUri, suite, component, targetArch] = line.split('\t');
    if (repoUri === undefined || suite === undefined || component === undefined || targetArch !== arch) continue;
    targets.push({ repoUri: withSlash(repoUri), suite, component });
  }
  return targets;
}

/** One entry of apt's source files, sources.list(5). */
type Entry = {
  readonly repoUris: readonly string[];
  readonly suites: readonly string[];
  readonly components: readonly string[];
  /** Empty: every architecture. */
  readonly archs: readonly string[];
  readonly signedBy: string;
};

/** `deb [arch=amd64 signed-by=/path] URI SUITE COMPONENT…` */
function entryOfLine(line: string): Entry | undefined {
  const [, options, rest] = /^\s*deb\s+(?:\[([^\]]*)\]\s*)?([^#]+)/.exec(line) ?? [];
  const [uri, suite, ...components] = wordsOf(rest);
  if (uri === undefined || suite === undefined) return undefined;
  const option = (name: string): string => new RegExp(`(?:^|\\s)${name}=(\\S+)`).exec(options ?? '')?.[1] ?? '';
  return {
    repoUris: [withSlash(uri)],
    suites: [suite],
    components,
    archs: wordsOf(option('arch')),
    signedBy: option('signed-by'),
  };
}

function entriesOfStanzas(text: string, path: string): readonly Entry[] {
  const isActive = (stanza: Stanza): boolean =>
    wordsOf(stanza.get('types')).includes('deb') && stanza.get('enabled')?.toLowerCase() !== 'no';
  return readStanzas(text, path)
    .filter(isActive)
    .map((stanza) => ({
      repoUris: wordsOf(stanza.get('uris')).map(withSlash),
      suites: wordsOf(stanza.get('suites')),
      components: wordsOf(stanza.get('components')),
      archs: wordsOf(stanza.get('architectures')),
      signedBy: stanza.get('signed-by') ?? '',
    }));
}

/** The source files themselves: they know the signing keys, and the suites of a host that never ran an update. */
async function readEntries(): Promise<readonly Entry[]> {
  const shown = await tryCommand([
    'apt-config',
    'shell',
    'LIST',
    'Dir::Etc::sourcelist/f',
    'PARTS',
    'Dir::Etc::sourceparts/d',
  ]);
  const setting = (name: string): string => new RegExp(`^${name}='(.*)'$`, 'm').exec(shown.stdout)?.[1] ?? '';
  const names = await readdir(setting('PARTS')).catch(() => []);
  const paths = [setting('LIST'), ...names.sort().map((name) => join(setting('PARTS'), name))];
  const entries: Entry[] = [];
  for (const path of paths.filter((one) => /\.(list|sources)$/.test(one))) {
    const text = await readFile(path, 'utf8').catch(() => '');
    if (path.endsWith('.sources')) entries.push(...entriesOfStanzas(text, path));
    else
      entries.push(
        ...text
          .split('\n')
          .map(entryOfLine)
          .filter((entry) => entry !== undefined),
      );
  }
  return entries;
}

function targetsOfEntries(entries: readonly Entry[], arch: string): readonly Target[] {
  const isFetched = ({ archs }: Entry): boolean => archs.length === 0 || archs.includes(arch);
  return entries
    .filter(isFetched)
    .flatMap(({ repoUris, suites, components }) =>
      repoUris
        .filter((repoUri) => /^(https?|file):/.test(repoUri))
        .flatMap((repoUri) =>
          suites.flatMap((suite) => components.map((component) => ({ repoUri, suite, component }))),
        ),
    );
}

async function isFile(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  return found?.isFile() === true;
}

/** The keys apt trusts for every source; Debian's own keyring where apt has none. */
export async function defaultKeys(): Promise<TrustedKeys> {
  const folder = join(APT_FOLDER, 'trusted.gpg.d');
  const names = await readdir(folder).catch(() => []);
  const candidates = [join(APT_FOLDER, 'trusted.gpg'), ...names.sort().map((name) => join(folder, name))];
  const paths: string[] = [];
  for (const path of candidates) {
    if (/\.(gpg|asc)$/.test(path) && (await isFile(path)) && (await stat(path)).size > 0) paths.push(path);
  }
  if (await isFile(DEBIAN_KEYRING)) paths.push(DEBIAN_KEYRING);
  return { paths, embedded: [], fingerprints: [] };
}

/** What Signed-By says; fingerprints alone mean those among apt's default keys. */
async function keysOf(target: Target, entries: readonly Entry[]): Promise<TrustedKeys> {
  const entry = entries.find(
    ({ repoUris, suites }) => repoUris.includes(target.repoUri) && suites.includes(target.suite),
  );
  const keys = parseSignedBy(entry?.signedBy ?? '');
  if (keys.paths.length > 0 || keys.embedded.length > 0) return keys;
  return { ...(await defaultKeys()), fingerprints: keys.fingerprints };
}

/** What the host's apt knows of the wanted suites, and an error that names those that it does not. */
export type AptSources = { readonly sources: readonly Source[]; readonly missing: VendorError | null };

/** The sources of the wanted suites as this host's apt has them. Throws VendorError `host-unfit/no-apt-source` where apt cannot be asked. */
export async function readAptSources(
  suites: readonly string[],
  arch: string,
  components: readonly string[] | undefined,
): Promise<AptSources> {
  const entries = await readEntries();
  const targets = [...(await readTargets(arch)), ...targetsOfEntries(entries, arch)];
  const sources: Source[] = [];
  for (const suite of suites) {
    const first = targets.find((target) => target.suite === suite);
    if (first === undefined) continue;
    // A second archive of the same suite would be another source; apt's order decides, as in apt itself.
    const same = targets.filter((target) => target.suite === suite && target.repoUri === first.repoUri);
    const offered = [...new Set(same.map((target) => target.component))];
    const wanted = offered.filter((component) => components?.includes(component) ?? true);
    sources.push({ suite, repoUri: first.repoUri, components: wanted, keys: await keysOf(first, entries) });
  }
  const lost = suites.filter((suite) => !sources.some((source) => source.suite === suite));
  if (lost.length === 0) return { sources, missing: null };
  const message = `this host's apt has no source for ${lost.join(', ')} (${arch})`;
  const next = "add it to the host's apt sources, or give this vendor a `url` and a `keyring` of its own";
  return { sources, missing: new VendorError('host-unfit/no-apt-source', message, { next }) };
}

/** The architecture of this host in Debian's words. Throws VendorError. */
export async function readHostArch(): Promise<string> {
  try {
    return (await runCommand(['dpkg', '--print-architecture'])).trim();
  } catch (cause) {
    throw new VendorError('host-unfit/no-dpkg', 'this host has no dpkg, so its architecture is not known', {
      cause,
      next: 'configure `arch` for this vendor',
    });
  }
}

/** apt's own HTTP proxy, undefined where it has none (or none for this archive). */
export async function readAptProxy(repoUri: string): Promise<string | undefined> {
  const host = URL.canParse(repoUri) ? new URL(repoUri).hostname : '';
  const result = await tryCommand(['apt-config', 'dump', 'Acquire::http::Proxy']).catch(() => undefined);
  const settings = new Map<string, string>();
  for (const line of (result?.stdout ?? '').split('\n')) {
    const [, key, value] = /^Acquire::http::Proxy(?:::([^ ]+))? "(.*)";$/i.exec(line) ?? [];
    if (value !== undefined) settings.set(key ?? '', value);
  }
  const proxy = settings.get(host) ?? settings.get('');
  return proxy === undefined || proxy === '' || proxy === 'DIRECT' ? undefined : proxy;
}
