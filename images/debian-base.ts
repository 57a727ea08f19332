// The Debian base system at release level: without the security and update suites, so that real security updates are pending.
import { mkdir, mkdtemp, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { digestOf, digestOfFile } from '../src/base/digest.ts';
import { canonicalJson } from '../src/base/digest-text.ts';
import { writeDurably } from '../src/base/durable-file.ts';
import type { Log } from '../src/base/log.ts';
import { makeParser, parseJson } from '../src/base/parse.ts';
import { runCommand } from '../src/base/run-command.ts';
import { DigestSchema } from '../src/model/digest-schema.ts';
import { markUsed, pruneCache } from './cache.ts';
import { withFileLock } from './file-lock.ts';
import { ImageError } from './image-error.ts';
import { hostArch } from './kernel.ts';

/** Milliseconds for mmdebstrap: 40 s here with a near mirror, minutes with a far one. */
const BASE_TIMEOUT_MS = 1_800_000;

/** Makes /bin a link to /usr/bin from the start; otherwise a package that does it later brings all of perl along. */
const MERGED_USR_HOOKS = '--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr';

/** What a guest has no reader for: a third of the size. */
const LEFT_OUT = ['/usr/share/doc/*', '/usr/share/info/*', '/usr/share/locale/*', '/usr/share/man/*'];

/** In the base system: the SHA-256 of the signed InRelease that it was made from. */
const RELEASE_RECORD = 'usr/share/pratique-guest/inrelease.sha256';
const RECORD_HOOK = `--customize-hook=mkdir -p "$1/usr/share/pratique-guest"; cat "$1"/var/lib/apt/lists/*_InRelease | sha256sum | cut -d " " -f 1 >"$1/${RELEASE_RECORD}"`;

/** Bases kept in a cache: two for each image that is made from one. */
const BASES_KEPT = 6;

const BasePinSchema = Type.Object({
  suite: Type.String(),
  digest: DigestSchema,
  inRelease: DigestSchema,
  /** `name version arch`, sorted. */
  packages: Type.Array(Type.String()),
});
const parseBasePin = makeParser(BasePinSchema, 'host-fault/debian-base');
type BasePin = Static<typeof BasePinSchema>;

/** What a base system consists of, and its tar. */
export type DebianBase = BasePin & { readonly path: string };

export type BaseContent = {
  /** Packages beside the essential ones and apt. */
  readonly include: readonly string[];
  /** Files that must be there before those packages are installed, by their path without the first slash. */
  readonly seeds?: Readonly<Record<string, string>>;
};
export type BaseOptions = BaseContent & { readonly cacheFolder: string; readonly log: Log };

/**
 * The base system as a tar, as it was first made in this cache. A point release changes the mirror, not a base that is pinned here.
 * Throws ImageError `host-unfit/mirror` if this machine's apt knows no mirror of its own suite, CommandError if mmdebstrap fails.
 */
export async function fetchDebianBase(options: BaseOptions): Promise<DebianBase> {
  const suite = await hostSuite();
  const { include, seeds = {} } = options;
  const key = digestOf(
    canonicalJson({
      suite,
      arch: hostArch(),
      include,
      seeds,
      leftOut: LEFT_OUT,
      hooks: [MERGED_USR_HOOKS, RECORD_HOOK],
    }),
  );
  const bases = join(options.cacheFolder, 'debian-base');
  const folder = join(bases, key);
  await mkdir(folder, { recursive: true });
  const path = join(folder, 'base.tar');
  const base = await withFileLock(join(folder, 'lock'), async () => {
    const pinned = await readPinnedBase(folder, path);
    if (pinned !== null) return { ...pinned, path };
    options.log.info({ suite }, 'making the Debian base system');
    const temporary = await mkdtemp(join(folder, 'new-'));
    try {
      const made = join(temporary, 'base.tar');
      await runMmdebstrap({ suite, include, seeds, path: made });
      const pin = await describeBase(suite, made);
      await rename(made, path);
      await writeDurably(join(folder, 'pin.json'), `${JSON.stringify(pin)}\n`, 0o644);
      return { ...pin, path };
    } finally {
      await rm(temporary, { recursive: true, force: true });
    }
  });
  await markUsed(folder);
  await pruneCache({ folder: bases, pattern: /^[0-9a-f]{64}$/, keep: BASES_KEPT });
  return base;
}

async function readPinnedBase(folder: string, path: string): Promise<BasePin | null> {
  const pinPath = join(folder, 'pin.json');
  const text = await readFile(pinPath, 'utf8').catch(() => null);
  if (text === null) return null;
  const pin = parseBasePin(parseJson(text, pinPath, 'host-fault/debian-base'), pinPath);
  return (await digestOfFile(path).catch(() => null)) === pin.digest ? pin : null;
}

async function runMmdebstrap(base: BaseContent & { readonly suite: string; readonly path: string }): Promise<void> {
  const options = ['--quiet', '--variant=apt', '--format=tar', `--architectures=${hostArch()}`];
  const leftOut = LEFT_OUT.map((pattern) => `--dpkgopt=path-exclude=${pattern}`);
  const seeds = Object.entries(base.seeds ?? {}).map(([path, text]) => seedHook(path, text));
  const include = [
    MERGED_USR_HOOKS,
    ...seeds,
    RECORD_HOOK,
    `--include=${['usr-is-merged', ...base.include].join(',')}`,
  ];
  const argv = ['mmdebstrap', ...options, ...leftOut, ...include, base.suite, base.path, await mirrorLine(base.suite)];
  await runCommand(argv, { purpose: `making a Debian ${base.suite} base system`, timeoutMs: BASE_TIMEOUT_MS });
}

/** mmdebstrap(1): an essential hook runs before the packages of `--include` are installed, in a shell that has the root folder as $1. */
function seedHook(path: string, text: string): string {
  const file = `"$1/${path}"`;
  return `--essential-hook=mkdir -p "$(dirname ${file})"; printf %s '${text}' >${file}`;
}

async function describeBase(suite: string, path: string): Promise<BasePin> {
  const record = await readFromTar(path, RELEASE_RECORD);
  const stanzas = (await readFromTar(path, 'var/lib/dpkg/status')).split('\n\n');
  const packages = stanzas.flatMap((stanza) => {
    const field = (name: string) => new RegExp(`^${name}: (.+)$`, 'm').exec(stanza)?.[1];
    return field('Package') === undefined ? [] : [`${field('Package')} ${field('Version')} ${field('Architecture')}`];
  });
  const pin = { suite, digest: await digestOfFile(path), inRelease: record.trim(), packages: packages.sort() };
  return parseBasePin(pin, path);
}

async function readFromTar(path: string, member: string): Promise<string> {
  const argv = ['tar', '--extract', '--to-stdout', '--file', path, `./${member}`];
  return await runCommand(argv, { purpose: `reading ${member} of the Debian base system` });
}

async function hostSuite(): Promise<string> {
  const text = await readFile('/etc/os-release', 'utf8');
  const suite = /^VERSION_CODENAME="?([a-z]+)"?$/m.exec(text)?.[1];
  if (suite === undefined || !/^ID=debian$/m.test(text)) {
    throw new ImageError(
      'host-unfit/mirror',
      'the Debian guest is made from the mirror of a Debian host; this is none',
      {
        next: 'use the tiny guest on this machine',
      },
    );
  }
  return suite;
}

/** The sources line of the release suite, from the machine's own apt configuration; mmdebstrap finds the keyring by itself. */
async function mirrorLine(suite: string): Promise<string> {
  const format = '$(RELEASE)\t$(COMPONENT)\t$(REPO_URI)';
  const argv = ['apt-get', 'indextargets', '--format', format, 'Created-By: Packages'];
  const targets = (await runCommand(argv, { purpose: "reading this machine's Debian mirrors" })).split('\n');
  for (const target of targets) {
    const [release, component, uri] = target.split('\t');
    if (release !== suite || component !== 'main' || uri === undefined) continue;
    return `deb ${uri} ${suite} main`;
  }
  throw new ImageError('host-unfit/mirror', `apt on this machine knows no mirror of ${suite} main`, {
    next: `add the suite ${suite} to the apt sources and run apt-get update`,
  });
}
