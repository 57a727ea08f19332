// `npm run soak`: a bounded soak of one daemon with many VMs under random faults. docs/reliability.md says what it judges.
import { parseArgs } from 'node:util';
import { reportText } from './report.ts';
import { runSoak } from './soak.ts';

const USAGE = `npm run soak -- [--minutes N] [--vms N] [--real N] [--seed S] [--json]

  --minutes N   how long, 30 unless given; the last cycle is finished, and then all is taken away
  --vms N       VMs in all, 50 unless given
  --real N      how many of them are real tiny guests on QEMU, 3 unless given; the others are fakes that speak the real protocols
  --seed S      which faults strike whom; the moments at which they hit are not the same in two runs
  --json        one JSON document on stdout; progress goes to stderr

Needs root. Exit code 0: passed; 1: something is wrong; 2: usage.
`;
const STORM_MS = 8_000;
const CALM_TIMEOUT_MS = 180_000;
const SETTLE_MS = 30_000;
const KILLING_SHARE = 0.4;
const SEED_BELOW = 1_000_000;

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '30' },
    vms: { type: 'string', default: '50' },
    real: { type: 'string', default: '3' },
    seed: { type: 'string', default: String(Math.floor(Math.random() * SEED_BELOW)) },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const [minutes, vms, realVms, seed] = [values.minutes, values.vms, values.real, values.seed].map(Number);
if (values.help) {
  process.stdout.write(USAGE);
  process.exit(0);
}
const isWhole = (value: number | undefined): value is number => Number.isSafeInteger(value) && Number(value) >= 0;
if (!isWhole(vms) || !isWhole(realVms) || !isWhole(seed) || !(Number(minutes) > 0) || realVms > vms || vms === 0) {
  process.stderr.write(`soak: a number is missing, or there are more real VMs than VMs\n${USAGE}`);
  process.exit(2);
}
const say = (line: string): void => void (values.json ? process.stderr : process.stdout).write(`${line}\n`);
say(`soak: ${vms} VMs, ${realVms} of them real, for ${minutes} minutes, seed ${seed}`);
// Once: whoever asks twice wants it dead, and cleans up by hand.
let isEnding = false;
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.once(signal, () => {
    isEnding = true;
    say('soak: ending after this cycle');
  });
const report = await runSoak({
  minutes: Number(minutes),
  ...{ vms, realVms, seed, say },
  stormMs: STORM_MS,
  calmTimeoutMs: CALM_TIMEOUT_MS,
  settleMs: SETTLE_MS,
  killingShare: KILLING_SHARE,
  isAskedToEnd: () => isEnding,
});
process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : reportText(report));
process.exitCode = report.wrong.length === 0 ? 0 : 1;
