// `npm run sim -- --seeds N [--from K] [--steps S] [--json]`: many seeded lives, and the short story of each that went wrong.
import { parseArgs } from 'node:util';
import { type SimResult, simulate } from './simulate.ts';

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '200' },
    from: { type: 'string', default: '1' },
    steps: { type: 'string', default: '120' },
    json: { type: 'boolean', default: false },
  },
});
const [seeds, from, steps] = [values.seeds, values.from, values.steps].map(Number);
if (
  seeds === undefined ||
  from === undefined ||
  steps === undefined ||
  ![seeds, from, steps].every(Number.isSafeInteger)
) {
  process.stderr.write('sim: --seeds, --from and --steps are whole numbers\n');
  process.exit(2);
}

const broken: SimResult[] = [];
const sums = { steps: 0, opened: 0, crashes: 0, quarantines: 0, rollBacks: 0 };
for (let seed = from; seed < from + seeds; seed += 1) {
  const result = await simulate({ seed, steps });
  sums.steps += result.steps;
  sums.opened += result.opened;
  sums.crashes += result.crashes;
  sums.quarantines += result.quarantines;
  sums.rollBacks += result.rollBacks;
  if (result.broken === null) continue;
  broken.push(result);
  if (!values.json) process.stdout.write(`seed ${seed}: ${result.broken}\n  ${result.story.join('\n  ')}\n`);
}
const report = {
  from,
  seeds,
  broken: broken.map(({ seed, broken: why, story }) => ({ seed, broken: why, story })),
  ...sums,
};
if (values.json) process.stdout.write(`${JSON.stringify(report)}\n`);
else process.stdout.write(`${seeds} lives, ${broken.length} broken; ${JSON.stringify(sums)}\n`);
process.exitCode = broken.length === 0 ? 0 : 1;
