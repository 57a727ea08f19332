// Reads from the host's own apt configuration where its Debian archives are, which keys sign them, and its proxy.
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { runCommand, tryCommand } from '../../base/run-command.ts';
import { VendorError } from '../errors.ts';
import { readStanzas } from './stanzas.ts';

/** One suite of one archive. */
export type Source = {
  readonly suite: string;
  /** The archive's root, ending in a slash. */
  readonly repoUri: string;
  readonly components: readonly string[];
  /** Binary keyring files; any key in them may sign. */
  readonly keyrings: readonly string[];
};

type Target = { readonly repoUri: string; readonly suite: string; readonly component: string; readonly entry: string };

const FORMAT = '$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ARCHITECTURE)\t$(SOURCESENTRY)';
const APT_FOLDER = '/etc/apt';
const DEBIAN_KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';

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
    const [repoUri, suite, component, targetArch, entry] = line.split('\t');
    if (repoUri === undefined || suite === undefined || component === undefined || targetArch !== arch) continue;
    targets.push({ repoUri, suite, component, entry: entry ?? '' });
  }
  return targets;
}

/** Signed-By of one line in the old one-line format: `deb [signed-by=/path arch=amd64] URI SUITE COMPONENT`. */
function signedByOfLine(line: string | undefined): string | undefined {
  return /\[[^\]]*signed-by=([^\s\]]+)/i.exec(line ?? '')?.[1];
}

function signedByOfStanzas(text: string, path: string, target: Target): string | undefined {
  const stanza = readStanzas(text, path).find((fields) => {
    const words = (name: string): readonly string[] => (fields.get(name) ?? '').split(/\s+/);
    const isHere = words('uris').some((uri) => uri.replace(/\/*$/, '/') === target.repoUri.replace(/\/*$/, '/'));
    return isHere && words('suites').includes(target.suite);
  });
  return stanza?.get('signed-by');
}

/** apt does not print Signed-By, so it is read from the entry that apt names: `FILE:LINE`. */
async function findSignedBy(target: Target): Promise<string | undefined> {
  const [, path, lineNumber] = /^(.*):(\d+)$/.exec(target.entry) ?? [];
  if (path === undefined) return undefined;
  const text = await readFile(path, 'utf8').catch(() => '');
  return path.endsWith('.sources')
    ? signedByOfStanzas(text, path, target)
    : signedByOfLine(text.split('\n')[Number(lineNumber) - 1]);
}

async function isFile(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  return found?.isFile() === true;
}

/** The keys apt trusts for every source; Debian's own keyring where apt has none. */
export async function defaultKeyrings(): Promise<readonly string[]> {
  const folder = join(APT_FOLDER, 'trusted.gpg.d');
  const names = await readdir(folder).catch(() => []);
  const candidates = [join(APT_FOLDER, 'trusted.gpg'), ...names.sort().map((name) => join(folder, name))];
  const found: string[] = [];
  for (const path of candidates) {
    if (path.endsWith('.gpg') && (await isFile(path)) && (await stat(path)).size > 0) found.push(path);
  }
  if (await isFile(DEBIAN_KEYRING)) found.push(DEBIAN_KEYRING);
  return found;
}

/** Keyring files named by Signed-By. Fingerprints and embedded keys are no files; then apt's default keys must do. */
async function keyringsOf(target: Target): Promise<readonly string[]> {
  const signedBy = await findSignedBy(target);
  const paths = (signedBy ?? '').split(/[\s,]+/).filter((word) => word.startsWith('/'));
  return paths.length > 0 ? paths : await defaultKeyrings();
}

/**
 * The sources of the wanted suites as this host's apt has them. Throws VendorError `host-unfit/no-apt-source` that names
 * the suites apt does not know.
 */
export async function readAptSources(
  suites: readonly string[],
  arch: string,
  components: readonly string[] | undefined,
): Promise<readonly Source[]> {
  const targets = await readTargets(arch);
  const sources: Source[] = [];
  for (const suite of suites) {
    const [first, ...others] = targets.filter((target) => target.suite === suite);
    if (first === undefined) continue;
    // A second archive of the same suite would be another source; apt's order decides, as in apt itself.
    const same = [first, ...others].filter((target) => target.repoUri === first.repoUri);
    const offered = same.map((target) => target.component);
    const wanted = offered.filter((component) => components?.includes(component) ?? true);
    sources.push({ suite, repoUri: first.repoUri, components: wanted, keyrings: await keyringsOf(first) });
  }
  const missing = suites.filter((suite) => !sources.some((source) => source.suite === suite));
  if (missing.length === 0) return sources;
  throw new VendorError(
    'host-unfit/no-apt-source',
    `this host's apt has no source for ${missing.join(', ')} (${arch})`,
    { next: "add it to the host's apt sources, or give this vendor a `url` and a `keyring` of its own" },
  );
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
