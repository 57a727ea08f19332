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
    was: 'a VM that was added while another was being removed got the user id of that one, and a database error',
  },
];
