// Chance for the tests of power loss: seeded, so that whatever is found can be tried again with PRATIQUE_TEST_SEED.
import { randomInt } from 'node:crypto';

export const isFull = process.env.PRATIQUE_TEST_FULL === '1';
export const seed = Number(process.env.PRATIQUE_TEST_SEED ?? randomInt(1, 2 ** 31));

/** Numbers from 0 to below 1: a linear congruential generator (Numerical Recipes). */
export function makeRandom(from: number = seed): () => number {
  let state = from >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** So many of them in their order, one from each of as many equal parts; all of them in a full run. */
export function sample<T>(all: readonly T[], size: number, random = makeRandom()): readonly T[] {
  if (isFull || all.length <= size) return all;
  const part = all.length / size;
  const chosen = new Set(Array.from({ length: size }, (_, index) => Math.floor((index + random()) * part)));
  return all.filter((_, index) => chosen.has(index));
}
