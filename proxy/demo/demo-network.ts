// The demonstration's own network: a namespace with a bridge and a peer on it, where leaked frames would arrive and are counted.
import { type ChildProcess, spawn } from 'node:child_process';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import { enterPrefix } from '../../src/hypervisor/namespace.ts';
import type { Namespace } from '../../src/hypervisor/vm-spec.ts';

export const DEMO_BRIDGE = 'demobr0';
export const PEER_ADDRESS = '10.77.0.1/24';

/** Run by Node inside the namespace: prints a page. */
const FETCH =
  'fetch(process.argv[1], { signal: AbortSignal.timeout(2000) }).then(async (r) => console.log(await r.text()))';

/** A frame from a guest as the kernel saw it arrive at the peer. */
export type SeenFrame = { readonly mac: string; readonly atMs: number };

export type DemoNetwork = {
  readonly namespace: Namespace;
  /** All frames with this source address so far, with the kernel's own time stamps (wall time). */
  readonly framesFrom: (mac: string) => Promise<readonly SeenFrame[]>;
  /** Fetches a page from inside the namespace; null when nobody answers within the time. */
  readonly fetchPage: (url: string, timeoutMs: number) => Promise<string | null>;
  readonly close: () => Promise<void>;
};

/** Makes the namespace (as root by name, otherwise a user namespace), the bridge and the listening peer. */
export async function makeDemoNetwork(options: {
  readonly folder: string;
  readonly clock: Clock;
  /** How the namespace's name begins; this process's number follows. */
  readonly prefix?: string;
}): Promise<DemoNetwork> {
  const { folder, clock, prefix = 'pqdemo' } = options;
  const isRoot = process.getuid?.() === 0;
  const home = isRoot ? await makeNamedNamespace(`${prefix}${process.pid}`) : await makeUserNamespace(clock);
  const enter = enterPrefix(home.namespace);
  const run = async (...argv: readonly string[]) =>
    await runCommand([...enter, ...argv], { purpose: 'making the demonstration network' });
  const record = join(folder, 'peer-frames.txt');
  let watcher: ChildProcess | null = null;
  try {
    await run('ip', 'link', 'set', 'lo', 'up');
    await run('ip', 'link', 'add', DEMO_BRIDGE, 'type', 'bridge', 'mcast_snooping', '0');
    await run('ip', 'link', 'add', 'peer0', 'type', 'veth', 'peer', 'name', 'peer1');
    await run('ip', 'link', 'set', 'peer0', 'master', DEMO_BRIDGE);
    for (const device of [DEMO_BRIDGE, 'peer0', 'peer1']) await run('ip', 'link', 'set', device, 'up');
    await run('ip', 'address', 'add', PEER_ADDRESS, 'dev', 'peer1');
    watcher = await watch(enter, record, clock);
  } catch (error) {
    watcher?.kill('SIGKILL');
    await home.close();
    throw error;
  }
  return {
    namespace: home.namespace,
    framesFrom: async (mac) => (await readRecord(record)).filter((frame) => frame.mac === mac),
    fetchPage: async (url, timeoutMs) => {
      let page: string | null = null;
      await waitUntil(clock, timeoutMs, async () => {
        const answer = await tryCommand([...enter, process.execPath, '-e', FETCH, url]);
        if (answer.exitCode === 0) page = answer.stdout.trim();
        return page !== null;
      });
      return page;
    },
    close: async () => {
      watcher?.kill('SIGTERM');
      await home.close();
    },
  };
}

type Home = { readonly namespace: Namespace; readonly close: () => Promise<void> };

async function makeNamedNamespace(name: string): Promise<Home> {
  await runCommand(['ip', 'netns', 'add', name], { purpose: 'making the network namespace of the demonstration' });
  return {
    namespace: { kind: 'named', name },
    close: async () => void (await tryCommand(['ip', 'netns', 'delete', name])),
  };
}

/** An ordinary user's own network: a process that holds a user and a network namespace open. */
async function makeUserNamespace(clock: Clock): Promise<Home> {
  const holder = spawn('unshare', ['--user', '--map-root-user', '--net', 'sleep', 'infinity'], { stdio: 'ignore' });
  const { pid } = holder;
  const ready = pid !== undefined && (await waitUntil(clock, 5_000, async () => await isInOwnNamespace(pid)));
  if (!ready || pid === undefined) {
    holder.kill('SIGKILL');
    throw new PratiqueError(
      'host-unfit/user-namespaces',
      'this kernel does not let an ordinary user make network namespaces',
      {
        next: 'run the demonstration as root, or allow unprivileged user namespaces',
      },
    );
  }
  return { namespace: { kind: 'process', pid, withUser: true }, close: async () => void holder.kill('SIGKILL') };
}

async function isInOwnNamespace(pid: number): Promise<boolean> {
  const command = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '');
  return command.trim() === 'sleep';
}

/** Watches the peer: a line for each frame that arrives, with the kernel's time, into a file. */
async function watch(enter: readonly string[], record: string, clock: Clock): Promise<ChildProcess> {
  const [program, ...args] = [...enter, 'perl', join(import.meta.dirname, 'watch-frames.pl'), 'peer1'];
  if (program === undefined) throw new Error('assertion failed: perl has a name');
  const output = await open(record, 'w');
  const child = spawn(program, args, { stdio: ['ignore', output.fd, 'pipe'] });
  await output.close();
  let said = '';
  child.stderr?.on('data', (piece: Buffer) => {
    said += piece.toString('utf8');
  });
  const isWatching = async () => child.exitCode !== null || (await readFile(record, 'utf8')).startsWith('ready');
  if ((await waitUntil(clock, 10_000, isWatching)) && child.exitCode === null) return child;
  child.kill('SIGKILL');
  throw new PratiqueError('host-unfit/peer', `the peer cannot watch for frames: ${said.trim()}`, {
    next: 'run pratique doctor',
  });
}

/** The frames of a record: lines of seconds and source address. */
async function readRecord(path: string): Promise<readonly SeenFrame[]> {
  const lines = (await readFile(path, 'utf8')).split('\n');
  return lines.flatMap((line) => {
    const [, seconds, mac] = /^([0-9.]+) ([0-9a-f:]{17})$/.exec(line) ?? [];
    return seconds === undefined || mac === undefined ? [] : [{ mac, atMs: Number(seconds) * 1000 }];
  });
}

/** Polls until the condition holds; false when the time is up. */
export async function waitUntil(clock: Clock, timeoutMs: number, condition: () => Promise<boolean>): Promise<boolean> {
  const until = clock.monotonicMs() + timeoutMs;
  while (clock.monotonicMs() < until) {
    if (await condition()) return true;
    await clock.sleep(25);
  }
  return await condition();
}
