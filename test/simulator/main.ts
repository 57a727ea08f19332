// `npm run sim`: many seeded lives, and the short story of each that went wrong. docs/simulator.md says how to use it.
import { parseArgs } from 'node:util';
import { ACT_NAMES } from './faults.ts';
import { MUTATIONS, type Mutation } from './mutations.ts';
import { type SimResult, STEPS, shrink, simulate } from './simulate.ts';

const USAGE = `npm run sim -- [--seeds N] [--from K] [--steps S] [--json] [--table]   N lives, from seed K on
npm run sim -- --seed K --story [--only 3,7,9]                        one life, told
npm run sim -- --mutation NAME …                                      with a guard broken on purpose
`;

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '200' },
    from: { type: 'string', default: '1' },
    steps: { type: 'string', default: String(STEPS) },
    seed: { type: 'string' },
    story: { type: 'boolean', default: false },
    only: { type: 'string' },
    mutation: { type: 'string' },
    table: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});

const [seeds, from, steps] = [Number(values.seeds), Number(values.seed ?? values.from), Number(values.steps)];
const isMutation = (name: string): name is Mutation => Object.hasOwn(MUTATIONS, name);
const { mutation } = values;
const isUsable = [seeds, from, steps].every((each) => Number.isSafeInteger(each) && each >= 0);
if (values.help || !isUsable || (mutation !== undefined && !isMutation(mutation))) {
  process.stderr.write(isUsable && values.help ? USAGE : `sim: what was given is no number, or no mutation\n${USAGE}`);
  process.exit(values.help ? 0 : 2);
}
const options = { steps, ...(mutation === undefined ? {} : { mutation }) };

if (values.seed === undefined) await runMany();
else await tellOne(from);

async function runMany(): Promise<void> {
  const startedMs = performance.now();
  const coverage = new Map<string, number>();
  const sums = { steps: 0, moments: 0, opened: 0, crashes: 0, quarantines: 0, rollBacks: 0 };
  const broken: { seed: number; broken: string; only: readonly number[]; story: readonly string[] }[] = [];
  for (let seed = from; seed < from + seeds; seed += 1) {
    const result = await simulate({ ...options, seed });
    for (const key of Object.keys(sums) as (keyof typeof sums)[]) sums[key] += result[key];
    for (const [key, times] of result.coverage) coverage.set(key, (coverage.get(key) ?? 0) + times);
    if (result.broken === null) continue;
    const shrunk = await shrink({ ...options, seed }, result.broken);
    broken.push({ seed, broken: result.broken, only: [...shrunk.only], story: shrunk.result.story });
    if (!values.json) tell(shrunk.result, [...shrunk.only]);
  }
  const msPerSeed = Math.round((performance.now() - startedMs) / Math.max(1, seeds));
  const report = {
    from,
    seeds,
    ...sums,
    msPerSeed,
    violations: broken,
    faults: faultsOf(coverage),
    coverage: tableOf(coverage),
  };
  if (values.json) process.stdout.write(`${JSON.stringify(report)}\n`);
  else {
    if (values.table) process.stdout.write(`${printTable(tableOf(coverage))}\n`);
    process.stdout.write(`${seeds} lives, ${broken.length} broken, ${msPerSeed} ms each; ${JSON.stringify(sums)}\n`);
  }
  process.exitCode = broken.length === 0 ? 0 : 1;
}

async function tellOne(seed: number): Promise<void> {
  const only = values.only === undefined ? undefined : new Set(values.only.split(',').map(Number));
  const result = await simulate({ ...options, seed, ...(only === undefined ? {} : { only }) });
  if (values.json) process.stdout.write(`${JSON.stringify({ ...result, coverage: tableOf(result.coverage) })}\n`);
  else if (result.broken === null || values.story) tell(result, [...(only ?? [])]);
  else {
    const shrunk = await shrink({ ...options, seed }, result.broken);
    tell(shrunk.result, [...shrunk.only]);
  }
  process.exitCode = result.broken === null ? 0 : 1;
}

function tell({ seed, broken, story }: SimResult, only: readonly number[]): void {
  const acts = only.length === 0 ? '' : ` --only ${only.join(',')}`;
  process.stdout.write(`seed ${seed}: ${broken ?? 'went well'}\n  ${story.join('\n  ')}\n`);
  process.stdout.write(`  again: npm run sim -- --seed ${seed} --story${acts}\n`);
}

function faultsOf(coverage: ReadonlyMap<string, number>): Readonly<Record<string, number>> {
  const faults: Record<string, number> = Object.fromEntries(ACT_NAMES.map((name) => [name, 0]));
  for (const [key, times] of coverage) {
    const fault = key.split('\t')[0] ?? '';
    faults[fault] = (faults[fault] ?? 0) + times;
  }
  return faults;
}

type Table = Readonly<Record<string, Readonly<Record<string, number>>>>;

/** Each fault by each state. */
function tableOf(coverage: ReadonlyMap<string, number>): Table {
  const table: Record<string, Record<string, number>> = {};
  for (const [key, times] of [...coverage].sort()) {
    const [fault = '', state = ''] = key.split('\t');
    table[fault] = { ...table[fault], [state]: times };
  }
  return table;
}

function printTable(table: Table): string {
  const states = [...new Set(Object.values(table).flatMap((row) => Object.keys(row)))].sort();
  const cells = Object.entries(table).map(([fault, row]) => [fault, ...states.map((state) => String(row[state] ?? 0))]);
  return [['', ...states], ...cells]
    .map((line) => line.map((cell, index) => (index === 0 ? cell.padEnd(20) : cell.padStart(12))).join(' '))
    .join('\n');
}
