// Runs the real command `demo --json` as a person would, and notes on the way what it must not leave behind.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parse } from 'smol-toml';
import type { DemoDocument } from '../../proxy/demo/document.ts';
import { systemClock } from '../../src/base/clock.ts';

const MAIN = join(import.meta.dirname, '../../proxy/main.ts');
const WATCH_INTERVAL_MS = 100;

/** What the demonstration made while it ran. */
type Traces = {
  readonly folders: Set<string>;
  /** Processes with their start times, so that a number used again is not taken for the same process. */
  readonly processes: Map<number, string>;
};

export type DemoRun = {
  readonly exitCode: number | null;
  readonly document: DemoDocument;
  /** Everything on stderr: the timeline and the promises. */
  readonly said: string;
  /** What is still there of it. */
  readonly leftovers: readonly string[];
  /** How many QEMUs and daemons were seen, so that "nothing is left" says something. */
  readonly processesSeen: number;
};

/** Runs it to its end. Fails when stdout is not exactly one JSON document. */
export async function runDemoCommand(words: readonly string[]): Promise<DemoRun> {
  const child = spawn(process.execPath, [MAIN, 'demo', '--json', ...words], { stdio: ['ignore', 'pipe', 'pipe'] });
  const { pid } = child;
  assert(pid !== undefined, 'the demonstration could not be started');
  let stdout = '';
  let said = '';
  child.stdout.on('data', (piece: Buffer) => {
    stdout += piece.toString('utf8');
  });
  child.stderr.on('data', (piece: Buffer) => {
    said += piece.toString('utf8');
  });
  const traces: Traces = { folders: new Set(), processes: new Map() };
  const ended = once(child, 'exit');
  while (child.exitCode === null && child.signalCode === null) {
    await watch(pid, traces);
    await systemClock.sleep(WATCH_INTERVAL_MS);
  }
  await ended;
  const lines = stdout.trim().split('\n');
  assert.equal(lines.length, 1, `stdout is one document; it was:\n${stdout}\nstderr was:\n${said}`);
  return {
    exitCode: child.exitCode,
    // The cast holds as far as each test looks at the fields.
    document: JSON.parse(lines[0] ?? '') as DemoDocument,
    said,
    leftovers: await findLeftovers(pid, traces),
    processesSeen: traces.processes.size,
  };
}

/** Notes the daemons of the demonstration, their folders, and the QEMUs recorded there. */
async function watch(demoPid: number, traces: Traces): Promise<void> {
  const children = await readOr(`/proc/${demoPid}/task/${demoPid}/children`, '');
  for (const word of children.split(' ').filter((each) => each !== '')) {
    const argv = (await readOr(`/proc/${word}/cmdline`, '')).split('\0');
    const configPath = argv[argv.indexOf('--config') + 1] ?? '';
    if (!argv.includes('serve') || configPath === '') continue;
    await noteProcess(Number(word), traces);
    const config = await readOr(configPath, '');
    const { dataFolder, runFolder } = config === '' ? {} : parse(config);
    for (const folder of [dataFolder, runFolder]) if (typeof folder === 'string') traces.folders.add(folder);
    if (typeof runFolder === 'string') await noteQemus(runFolder, traces);
  }
}

async function noteQemus(runFolder: string, traces: Traces): Promise<void> {
  for (const vm of await readdir(join(runFolder, 'vm')).catch(() => [])) {
    const pid = Number.parseInt(await readOr(join(runFolder, 'vm', vm, 'pid'), ''), 10);
    if (Number.isInteger(pid)) await noteProcess(pid, traces);
  }
}

async function noteProcess(pid: number, traces: Traces): Promise<void> {
  const startedAt = await startTimeOf(pid);
  if (startedAt !== null && !traces.processes.has(pid)) traces.processes.set(pid, startedAt);
}

async function findLeftovers(demoPid: number, traces: Traces): Promise<readonly string[]> {
  const left: string[] = [];
  for (const folder of traces.folders) if (await exists(folder)) left.push(`folder ${folder}`);
  for (const [pid, startedAt] of traces.processes) {
    if ((await startTimeOf(pid)) === startedAt) left.push(`process ${pid}: ${await readOr(`/proc/${pid}/comm`, '')}`);
  }
  const namespaces = await readdir('/run/netns').catch(() => []);
  for (const name of namespaces) if (name === `pqdemo${demoPid}`) left.push(`network namespace ${name}`);
  return left;
}

/** Field 22 of proc(5)'s stat: when the process started; null when it is gone or only waits to be reaped. */
export async function startTimeOf(pid: number): Promise<string | null> {
  const stat = await readOr(`/proc/${pid}/stat`, '');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return stat === '' || fields[0] === 'Z' ? null : (fields[19] ?? null);
}

async function readOr(path: string, otherwise: string): Promise<string> {
  return await readFile(path, 'utf8').catch(() => otherwise);
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
