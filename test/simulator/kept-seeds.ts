// Seeds that once broke an invariant, with what it was; `npm test` lives each of them again. docs/simulator.md says how to keep one.

export type KeptSeed = {
  readonly seed: number;
  /** Numbers of the steps that matter, as the shrunk story names them; absent: all. */
  readonly only?: readonly number[];
  readonly was: string;
};

export const KEPT_SEEDS: readonly KeptSeed[] = [
  {
    seed: 113,
    was: 'a VM added while another was being removed got the user id of that one, and a database error',
  },
  {
    seed: 307,
    was: 'a VM found ungated, whose QEMU then ended, was to be stopped before it could be started',
  },
  {
    seed: 5406,
    was: 'on a slow disk a guest that had booted anew was plugged in before its new session was journaled',
  },
  {
    seed: 1319,
    was: 'the drive of a live update that failed stayed in the guest for good when its word that it let go was lost',
  },
  {
    seed: 3906,
    only: [9, 13, 16, 17],
    was: 'a VM that was removed while its state was being saved left the timer of its run behind',
  },
  {
    seed: 123,
    only: [64, 81, 87, 89],
    was: 'a guest that reset while the audit disk was full stood still for good: a retry asked it, and did not let it run',
  },
];
