// The Debian index: a refresh of full main beside `xz -dc` of the same file, its memory, and what the next VM costs.
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { makeHttpFetch } from '../../src/base/http-fetch.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { readAptSources, readHostArch } from '../../src/vendor/debian-apt/host-apt.ts';
import { makeDebianVendor } from '../../src/vendor/debian-apt/index.ts';
import { installRelease, readIndexes, type Stanza } from '../e2e/debian-status.ts';
import { startHttpServer } from '../fakes/http-server.ts';

/** xz and the refresh take turns, so that a busy machine disturbs both alike; the medians are compared. */
const ROUNDS = 7;
const PACKAGES = 300;
/** The daemon starts itself with this, too, and keeps the types stripped from its code in a cache (proxy/main.ts). */
const NODE_FLAGS = ['--max-semi-space-size=8'];

/** What one VM has, and what another of another kind has; the base system is in both. */
const FIRST_VM = ['nginx', 'openssl', 'curl', 'jq', 'openssh-server', 'python3', 'git', 'build-essential'];
const SECOND_VM = ['postgresql', 'redis-server', 'memcached', 'openjdk-17-jre-headless', 'php-fpm', 'vim', 'rsync'];

export type IndexPart = {
  readonly refreshMs: number;
  /** Processor time of the process itself; xz beside it is not counted. */
  readonly refreshCpuMs: number;
  readonly packages: number;
  /** The most memory resident, in MB: of the process before the refresh, and with it. */
  readonly residentBeforeMB: number;
  readonly residentMaxMB: number;
  readonly firstVmMs: number;
  readonly secondVmMs: number;
  readonly releases: number;
};

/** A copy of main as the mirror has it now, served on loopback; the vendor verifies, downloads, unpacks, parses and stores it anew each round. */
export async function run(say: (line: string) => void): Promise<object> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-bench-index-'));
  try {
    const copy = await copyMain(folder);
    const server = await startHttpServer(copy.archive);
    const order = { url: server.url, suite: copy.suite, keyring: copy.keyring, arch: copy.arch, vms: copy.vms };
    const rounds: { readonly xzMs: number; readonly part: IndexPart }[] = [];
    try {
      await runPart(folder, 0, order); // Fills the cache of stripped code, which a daemon has.
      for (let round = 1; round <= ROUNDS; round += 1) {
        const xzMs = await timeXz(copy.index);
        const part = await runPart(folder, round, order);
        say(`round ${round}: xz ${xzMs.toFixed(0)} ms, refresh ${part.refreshMs.toFixed(0)} ms`);
        rounds.push({ xzMs, part });
      }
    } finally {
      await server.close();
    }
    return figuresOf(
      rounds,
      copy.vms.map((vm) => vm.length),
    );
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function figuresOf(
  rounds: readonly { readonly xzMs: number; readonly part: IndexPart }[],
  vmPackages: readonly number[],
): object {
  const median = (of: (part: IndexPart) => number): number => medianOf(rounds.map(({ part }) => of(part)));
  const xzMs = medianOf(rounds.map((round) => round.xzMs));
  const refreshMs = median((part) => part.refreshMs);
  const ratio = Math.round((refreshMs / xzMs) * 100) / 100;
  const residentMaxMB = Math.max(...rounds.map(({ part }) => part.residentMaxMB));
  const secondVmMs = median((part) => part.secondVmMs);
  return {
    packages: rounds[0]?.part.packages ?? 0,
    xzMs,
    refreshMs,
    refreshCpuMs: median((part) => part.refreshCpuMs),
    ratio,
    residentBeforeMB: median((part) => part.residentBeforeMB),
    residentMaxMB,
    vmPackages,
    firstVmMs: median((part) => part.firstVmMs),
    secondVmMs,
    targets: { ratio: '<= 1.5', residentMaxMB: '<= 150', secondVmMs: '<= 50' },
    met: { ratio: ratio <= 1.5, residentMaxMB: residentMaxMB <= 150, secondVmMs: secondVmMs <= 50 },
  };
}

/** Fetches main by the vendor itself, verified, and lays its signed files out; the VMs are made of its own packages. */
async function copyMain(folder: string) {
  const arch = await readHostArch();
  const release = await runCommand(['sh', '-c', '. /etc/os-release && echo "$VERSION_CODENAME"']);
  const suite = release.trim();
  const { sources, missing } = await readAptSources([suite], arch, ['main']);
  if (missing !== null) throw missing;
  const http = makeHttpFetch({ clock: systemClock });
  const deps = { folder: join(folder, 'copy'), http, clock: systemClock, metadataAgeMaxMs: 86_400_000, log: silentLog };
  const vendor = await makeDebianVendor({ name: 'copy', suites: [suite], components: ['main'] }, deps);
  await vendor.refresh({});
  const [example] = await vendor.offers();
  const archives = (await vendor.signedArchives?.(example === undefined ? [] : [example])) ?? [];
  const archive = join(folder, 'archive');
  for (const { path, sourcePath, digest } of archives.flatMap(({ files }) => files)) {
    const target = join(archive, path);
    const isIndex = !path.endsWith('InRelease');
    await mkdir(join(target, '..', 'by-hash/SHA256'), { recursive: true });
    await copyFile(sourcePath, target);
    if (isIndex) await copyFile(sourcePath, join(target, '..', 'by-hash/SHA256', digest));
  }
  await vendor.close();
  await http.close();
  const main = (await readIndexes(archive, archives)).get(suite) ?? [];
  const index = archives[0]?.files.find(({ path }) => path.endsWith('.xz'))?.path ?? '';
  const keyring = sources[0]?.keys.paths[0] ?? '/usr/share/keyrings/debian-archive-keyring.gpg';
  const vms = [FIRST_VM, SECOND_VM].map((names) => productsOf(installRelease(main, names)));
  return { archive, index: join(archive, index), suite, keyring, arch, vms };
}

/** `PACKAGES` of them, every third at an older version than the archive's, so that there is something to choose. */
function productsOf(stanzas: readonly Stanza[]) {
  return stanzas.slice(0, PACKAGES).map((stanza, number) => ({
    product: stanza.get('Package') ?? '',
    version: number % 3 === 0 ? '0~1' : (stanza.get('Version') ?? ''),
    arch: stanza.get('Architecture') ?? '',
  }));
}

async function timeXz(path: string): Promise<number> {
  const startMs = systemClock.monotonicMs();
  await runCommand(['sh', '-c', 'xz -dc -- "$1" >/dev/null', 'sh', path]);
  return systemClock.monotonicMs() - startMs;
}

async function runPart(folder: string, round: number, order: object): Promise<IndexPart> {
  const path = join(folder, 'order.json');
  await writeFile(path, JSON.stringify({ ...order, folder: join(folder, `round-${round}`) }));
  const script = join(import.meta.dirname, 'package-index-part.ts');
  const printed = await runCommand([process.execPath, ...NODE_FLAGS, script, path], {
    timeoutMs: 300_000,
    env: { ...process.env, NODE_COMPILE_CACHE: join(folder, 'compile-cache') },
  });
  await rm(join(folder, `round-${round}`), { recursive: true, force: true });
  // The cast holds: the other file of this bench prints it.
  return JSON.parse(printed) as IndexPart;
}

function medianOf(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return Math.round((sorted[Math.floor(sorted.length / 2)] ?? 0) * 10) / 10;
}
