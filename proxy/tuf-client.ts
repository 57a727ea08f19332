// A TUF client with the command line of the public conformance suite, on the trust that the vendors use. docs/tuf-conformance.md
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { copyFile, mkdir, readdir, rename, rm, stat, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { Command, CommanderError } from 'commander';
import { systemClock } from '../src/base/clock.ts';
import { writeDurably } from '../src/base/durable-file.ts';
import { describeError, PratiqueError } from '../src/base/errors.ts';
import { bytesFrom, type HttpFetch, makeHttpFetch } from '../src/base/http-fetch.ts';
import { ARTIFACT_BYTES_MAX } from '../src/base/limits.ts';
import { printableBlock } from '../src/base/printable.ts';
import type { FoundTarget } from '../src/vendor/tuf/delegations.ts';
import { loadTrust, type Trust } from '../src/vendor/tuf/trust.ts';

type Options = {
  readonly metadataDir: string;
  readonly metadataUrl?: string;
  readonly targetName?: string;
  readonly targetBaseUrl?: string;
  readonly targetDir?: string;
};

/** Our own state, in the folder that the suite gives us; the suite reads only the files beside it. */
const STATE = '.pratique';

/** `init TRUSTED_ROOT`: no request is made, and nothing is checked before it is used. */
async function init({ metadataDir }: Options, trustedRoot: string): Promise<void> {
  await mkdir(join(metadataDir, STATE), { recursive: true });
  await copyFile(trustedRoot, join(metadataDir, STATE, 'anchor'));
  await copyFile(trustedRoot, join(metadataDir, 'root.json'));
}

/** Runs some work with the trust kept in the folder, and shows afterwards what is trusted, also when the work failed. */
async function withTrust(options: Options, work: (trust: Trust, http: HttpFetch) => Promise<void>): Promise<void> {
  const http = makeHttpFetch({ clock: systemClock });
  try {
    const trust = await loadTrust({
      metadataUrls: [needed(options.metadataUrl, '--metadata-url')],
      rootPath: join(options.metadataDir, STATE, 'anchor'),
      folder: join(options.metadataDir, STATE),
      http,
      clock: systemClock,
    });
    try {
      await work(trust, http);
    } finally {
      await showTrusted(options.metadataDir, trust.texts());
    }
  } finally {
    await http.close();
  }
}

/** One `<role>.json` for each trusted role, and none for roles that are trusted no more. */
async function showTrusted(folder: string, texts: ReadonlyMap<string, string>): Promise<void> {
  const files = new Map([...texts].map(([role, text]) => [`${encodeURIComponent(role)}.json`, text]));
  for (const name of await readdir(folder))
    if (name.endsWith('.json') && !files.has(name)) await unlink(join(folder, name));
  for (const [name, text] of files) await writeDurably(join(folder, name), text, 0o644);
}

async function refresh(options: Options): Promise<void> {
  await withTrust(options, async (trust) => await trust.refreshTopLevel(new AbortController().signal));
}

/** Fetches the target unless what lies there is it already; what does not match its metadata is not stored. */
async function download(options: Options): Promise<void> {
  const path = needed(options.targetName, '--target-name');
  const folder = needed(options.targetDir, '--target-dir');
  const base = needed(options.targetBaseUrl, '--target-base-url');
  await withTrust(options, async (trust, http) => {
    const { signal } = new AbortController();
    const found = await trust.find(path, signal);
    if (found === null) throw new PratiqueError('not-found/target', `there is no target ${path}`);
    const file = join(folder, encodeURIComponent(path));
    if (await matches(file, found)) return;
    const isConsistent = isConsistentSnapshot(trust.texts().get('root') ?? '');
    const url = `${base.replace(/\/+$/, '')}/${targetFile(found, isConsistent)}`;
    const temporary = `${file}.part`;
    try {
      await fetchTo(http, url, temporary, Math.min(found.target.length, ARTIFACT_BYTES_MAX));
      if (!(await matches(temporary, found))) {
        throw new PratiqueError('vendor-ill/digest-mismatch', `${path} is not what its metadata say`);
      }
      await rename(temporary, file);
    } finally {
      await rm(temporary, { force: true });
    }
  });
}

async function fetchTo(http: HttpFetch, url: string, path: string, sizeBytesMax: number): Promise<void> {
  const opened = await http.open(url, { sizeBytesMax });
  await writeFile(path, bytesFrom(opened, 0));
}

/** TUF 5.7.3 and 6.2: with consistent snapshots the file's name carries its hash. */
function targetFile({ target }: FoundTarget, isConsistent: boolean): string {
  const parts = target.path.split('/').map(encodeURIComponent);
  const name = parts.pop() ?? '';
  const [hash] = Object.values(target.hashes);
  return [...parts, isConsistent ? `${hash}.${name}` : name].join('/');
}

function isConsistentSnapshot(rootText: string): boolean {
  // The cast holds: this root was verified.
  return (JSON.parse(rootText) as { signed: { consistent_snapshot: boolean } }).signed.consistent_snapshot;
}

/** Whether the file is there, with the length and all the hashes that the metadata name. */
async function matches(path: string, { target }: FoundTarget): Promise<boolean> {
  const stats = await stat(path).catch(() => null);
  const hashes = Object.entries(target.hashes);
  if (stats === null || stats.size !== target.length || hashes.length === 0) return false;
  for (const [algorithm, expected] of hashes) {
    const hash = createHash(algorithm);
    await pipeline(createReadStream(path), hash);
    if (hash.digest('hex') !== expected) return false;
  }
  return true;
}

function needed(value: string | undefined, option: string): string {
  if (value !== undefined) return value;
  throw new PratiqueError('usage/command-line', `${option} is missing`, { next: 'see docs/tuf-conformance.md' });
}

/** Runs one command line; the suite knows two exit codes: 0 done, 1 not. */
async function main(argv: readonly string[]): Promise<number> {
  const program = new Command('tuf-client')
    .requiredOption('--metadata-dir <folder>', 'where trusted metadata are kept, as <role>.json')
    .option('--metadata-url <url>', 'folder of the repository’s metadata')
    .option('--target-name <path>', 'target to download')
    .option('--target-base-url <url>', 'folder of the repository’s targets')
    .option('--target-dir <folder>', 'where verified targets are stored')
    .exitOverride();
  program
    .command('init')
    .argument('<trusted-root>')
    .action(async (root) => await init(program.opts(), root));
  program.command('refresh').action(async () => await refresh(program.opts()));
  program.command('download').action(async () => await download(program.opts()));
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return 0;
    const code = error instanceof PratiqueError ? `${error.code}: ` : '';
    process.stderr.write(`${code}${printableBlock(describeError(error), 4_000)}\n`);
    return 1;
  }
}

process.exitCode = await main(process.argv.slice(2));
