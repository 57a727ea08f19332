// What happens in a life, decided by its seed before it begins: each act has chance of its own, so that one left out moves no other.
import { ACT_NAMES, ACTS, type ActName, ALWAYS } from './faults.ts';
import type { Mutation } from './mutations.ts';
import { makeRandom, seedFor } from './random.ts';
import type { Setup } from './world.ts';

export type Step = {
  readonly name: ActName | null;
  /** Which VM it meets. */
  readonly vm: number;
  readonly seed: number;
  readonly waitMs: number;
  /** A daemon that is down is started after it. */
  readonly isRevived: boolean;
};

export type Schedule = { readonly setup: Setup; readonly steps: readonly Step[] };

/** What may happen to a VM with which nothing is wrong. */
const CALM_ACTS: ReadonlySet<ActName> = new Set(['start', 'stop-force', 'update']);

/** The schedule of a seed. */
export function makeSchedule(seed: number, length: number, mutation: Mutation | null): Schedule {
  const random = makeRandom(seedFor(seed, 'schedule'));
  const vms = random.pick([
    [4, 1],
    [4, 2],
    [3, 3],
    [1, 4],
    [1, 5],
  ]);
  const calm = vms > 1 && random.chance(0.3);
  const setup: Setup = {
    seed,
    vms,
    calm,
    lateness: random.pick([
      [1, 0],
      [2, 0.1],
      [2, 0.3],
    ]),
    failures: random.pick([
      [2, 0],
      [2, 0.01],
      [1, 0.05],
    ]),
    // Of a chance of its own, so that lives without a license are as they always were; and a license can go wrong with any VM.
    isLicensed: !calm && makeRandom(seedFor(seed, 'licensed')).chance(0.3),
    mutation,
  };
  // A random subset for each seed: with all of them on, nothing would ever come far.
  const share = random.pick([
    [2, 0.15],
    [3, 0.4],
    [1, 0.8],
  ]);
  const isOn = (name: ActName): boolean => {
    const drawn = random.chance(share);
    if (ALWAYS.has(name)) return true;
    return drawn && !(calm && ACTS[name].on === 'host');
  };
  const on = ACT_NAMES.filter(isOn);
  // A pause between what happens: a life of storms only would never see a long run.
  const idle = random.between(2, 30);
  const entries = on.map((name) => [ACTS[name].weight, name] as const);
  const steps = Array.from({ length }, (): Step => {
    const drawn = random.pick<ActName | null>([...entries, [idle, null]]);
    const vm = random.between(0, vms - 1);
    const isSpared = calm && vm === vms - 1 && drawn !== null && ACTS[drawn].on === 'vm' && !CALM_ACTS.has(drawn);
    const waitMs = random.pick([
      [5, 0],
      [5, 50],
      [5, 2_000],
      [5, 20_000],
      [2, 120_000],
      [1, 1_000_000],
    ]);
    const mine = random.between(0, 0xffff_ffff);
    const isRevived = random.chance(0.7);
    return { name: isSpared ? null : drawn, vm, seed: mine, waitMs, isRevived };
  });
  return { setup, steps };
}
