// Runs checks and tests, quickest first, prints a line for each file, and closes with one line: N passed, N failed.
// run-tests.ts check: format, lint, types and unit tests; all: also the tests of whole VMs; FILE...: these files alone.
import { globSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, relative } from 'node:path';
import { run } from 'node:test';
import { inspect } from 'node:util';
import { systemClock } from '../src/base/clock.ts';
import { tryCommand } from '../src/base/run-command.ts';

const ROOT = join(import.meta.dirname, '..');
const IS_FULL = process.env.PRATIQUE_TEST_FULL === '1';

/** Milliseconds for all unit tests together, and for all tests of whole VMs: one that hangs must not hold the others for ever. */
const UNIT_TIMEOUT_MS = 15 * 60_000;
const WHOLE_TIMEOUT_MS = (IS_FULL ? 240 : 30) * 60_000;
const CHECK_TIMEOUT_MS = 5 * 60_000;
/** Characters of a file's own output that are shown when it fails. */
const OUTPUT_CHARS_MAX = 8_000;

type Count = { readonly passed: number; readonly failed: number; readonly skipped: number };
const NOTHING: Count = { passed: 0, failed: 0, skipped: 0 };

type Check = { readonly name: string; readonly argv: readonly [string, ...string[]] };
const CHECKS: readonly Check[] = [
  {
    name: 'format, lint and import cycles',
    argv: [join(ROOT, `node_modules/@biomejs/cli-linux-${process.arch}/biome`), 'check', '--error-on-warnings', '.'],
  },
  { name: 'types', argv: [process.execPath, 'node_modules/typescript/bin/tsc', '--noEmit'] },
];

const ROOMS = ['src', 'proxy', 'guest-agent', 'images', 'scripts', 'test'].map((room) => `${room}/**/*.test.ts`);
/** Tests of whole VMs wait more than they work, and each VM takes one processor: as many files at once as there are processors. */
const WHOLE = ['e2e', 'hostile-guest', 'power-loss', 'soak', 'full'].map((folder) => `test/${folder}/**/*.test.ts`);
/** Whole files that take minutes: left for npm run test:full, and named where they are left out. */
const FULL_ONLY = ['test/full/**/*.test.ts'];
/** Whole files that take all processors by themselves. */
const ALONE = ['test/e2e/scale.test.ts'];

const say = (line: string): void => {
  process.stdout.write(`${line}\n`);
};
const indent = (text: string): string => text.replace(/^(?=.)/gm, '     ');
const seconds = (durationMs: number): string => `${(durationMs / 1000).toFixed(1)} s`;
const add = (a: Count, b: Count): Count => ({
  passed: a.passed + b.passed,
  failed: a.failed + b.failed,
  skipped: a.skipped + b.skipped,
});

/** A command that must end with 0, counted as one test. */
async function runCheck({ name, argv }: Check): Promise<Count> {
  const startMs = systemClock.monotonicMs();
  const ended = await tryCommand(argv, { cwd: ROOT, timeoutMs: CHECK_TIMEOUT_MS });
  const isFine = ended.exitCode === 0;
  say(`${isFine ? 'ok  ' : 'FAIL'} ${name} (${seconds(systemClock.monotonicMs() - startMs)})`);
  if (isFine) return { ...NOTHING, passed: 1 };
  say(indent(`${ended.stdout}\n${ended.stderr}`.trim()));
  return { ...NOTHING, failed: 1 };
}

/** The fields of node:test's events that are read here; each may be absent. */
type TestEventData = {
  readonly name?: string;
  readonly file?: string;
  readonly line?: number;
  readonly message?: string;
  readonly duration_ms?: number;
  readonly counts?: Readonly<Record<'passed' | 'failed' | 'cancelled' | 'skipped' | 'todo', number>>;
  readonly details?: { readonly type?: string; readonly error?: unknown; readonly duration_ms?: number };
};

/** What is kept of a file until its end is known. */
type FileNotes = { readonly failures: string[]; readonly output: string[]; readonly diagnostics: string[] };

/** Runs files in processes of their own, each shown as it ends; what failed in it stands below it. */
async function runFiles(files: readonly string[], concurrency: number, timeoutMs: number): Promise<Count> {
  const limit = new AbortController();
  const cancel = systemClock.after(timeoutMs, () => limit.abort());
  const paths = files.map((file) => join(ROOT, file));
  const open = new Map<string, FileNotes>();
  let total = NOTHING;
  for await (const event of run({ files: paths, concurrency, cwd: ROOT, signal: limit.signal })) {
    // The cast holds: node:test documents these fields for its events, and each is looked at before it is used.
    const { type, data } = event as { readonly type: string; readonly data: TestEventData };
    const count = noteEvent(open, type, data);
    if (count !== null) total = add(total, count);
  }
  cancel();
  if (!limit.signal.aborted) return total;
  say(`FAIL not done after ${seconds(timeoutMs)}: ${[...open.keys()].join(', ')}`);
  return add(total, { ...NOTHING, failed: 1 });
}

/** Keeps what an event says about its file; at the end of a file shows it and returns its count. */
function noteEvent(open: Map<string, FileNotes>, type: string, data: TestEventData): Count | null {
  if (data.file === undefined) return null;
  const file = relative(ROOT, data.file);
  const notes = open.get(file) ?? { failures: [], output: [], diagnostics: [] };
  open.set(file, notes);
  if (type === 'test:stdout' || type === 'test:stderr') notes.output.push(data.message ?? '');
  if (type === 'test:diagnostic') notes.diagnostics.push(data.message ?? '');
  if (type === 'test:fail' && data.details?.type !== 'suite') notes.failures.push(describeFailure(file, data));
  // A file in which no test ran is told as a test of the file's own name, and is no pass.
  const isWithoutTests = (type === 'test:fail' || type === 'test:pass') && data.name === data.file;
  if (type === 'test:pass' && isWithoutTests) notes.failures.push(`x ${file} has no tests\n`);
  if (type !== 'test:summary' && !isWithoutTests) return null;
  const count = isWithoutTests ? { ...NOTHING, failed: 1 } : countOf(data, notes);
  showFile(file, count, data.duration_ms ?? data.details?.duration_ms ?? 0, notes);
  open.delete(file);
  return count;
}

function countOf({ counts }: TestEventData, notes: FileNotes): Count {
  if (counts === undefined) return { ...NOTHING, failed: 1 };
  const failed = counts.failed + counts.cancelled;
  // A suite's own hook may fail without a failed test in it.
  return {
    passed: counts.passed,
    failed: Math.max(failed, notes.failures.length),
    skipped: counts.skipped + counts.todo,
  };
}

function describeFailure(file: string, { name, line, details }: TestEventData): string {
  const { error } = details ?? {};
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  return `x ${name} (${file}:${line ?? 1})\n${indent(cause instanceof Error ? (cause.stack ?? cause.message) : inspect(cause))}\n`;
}

function showFile(file: string, count: Count, durationMs: number, notes: FileNotes): void {
  const skipped = count.skipped === 0 ? '' : `, ${count.skipped} skipped`;
  say(`${count.failed === 0 ? 'ok  ' : 'FAIL'} ${file}: ${count.passed} tests${skipped} (${seconds(durationMs)})`);
  for (const message of notes.diagnostics) say(indent(message));
  if (count.failed === 0) return;
  for (const failure of notes.failures) say(indent(failure));
  const output = notes.output.join('').trim();
  if (output !== '') say(indent(`it printed:\n${output.slice(-OUTPUT_CHARS_MAX)}`));
}

function find(patterns: readonly string[], exclude: readonly string[]): readonly string[] {
  const leftOut = new Set(globSync([...exclude], { cwd: ROOT }));
  const found = globSync([...patterns], { cwd: ROOT });
  return found.filter((file) => !leftOut.has(file)).sort();
}

async function runUnitTests(): Promise<Count> {
  say('\nunit tests');
  return await runFiles(find(ROOMS, WHOLE), availableParallelism(), UNIT_TIMEOUT_MS);
}

async function runWholeTests(exclude: readonly string[]): Promise<Count> {
  const together = await runFiles(find(WHOLE, [...ALONE, ...exclude]), availableParallelism(), WHOLE_TIMEOUT_MS);
  return add(together, await runFiles(find(ALONE, []), 1, WHOLE_TIMEOUT_MS));
}

async function runNamed(words: readonly string[]): Promise<Count> {
  return await runFiles(
    words.map((file) => relative(ROOT, file)),
    1,
    WHOLE_TIMEOUT_MS,
  );
}

async function runAll(words: readonly string[]): Promise<Count> {
  const [scope] = words;
  if (scope !== 'check' && scope !== 'all') return await runNamed(words);
  let total = NOTHING;
  for (const check of CHECKS) total = add(total, await runCheck(check));
  total = add(total, await runUnitTests());
  if (scope === 'check') return total;
  if (IS_FULL) {
    say('\nwhole VMs, with every cell of the large matrices');
    return add(total, await runWholeTests([]));
  }
  const left = find(FULL_ONLY, []).join(', ');
  say(`\nwhole VMs, with a sample of the large matrices; npm run test:full has all cells, and ${left}`);
  return add(total, await runWholeTests(FULL_ONLY));
}

const startMs = systemClock.monotonicMs();
const { passed, failed, skipped } = await runAll(process.argv.slice(2));
say(`\nin ${seconds(systemClock.monotonicMs() - startMs)}`);
say(`${passed} passed, ${failed} failed${skipped === 0 ? '' : `, ${skipped} skipped`}`);
process.exitCode = failed === 0 && passed > 0 ? 0 : 1;
