// Seeded lives keep every invariant, the same seed tells the same story, and what is broken on purpose is found.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KEPT_SEEDS } from './kept-seeds.ts';
import { INVARIANTS, MUTATIONS, type Mutation } from './mutations.ts';
import { type SimResult, shrink, simulate } from './simulate.ts';

const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const SEEDS = isFull ? 1_000 : 40;
const MUTANT_SEEDS_MAX = 200;

const storyOf = ({ seed, broken, story }: SimResult): string => `seed ${seed}: ${broken}\n${story.join('\n')}`;

test(`no invariant breaks in ${SEEDS} lives with crashes, failures, lies and bad moments [A11 X1 X2 X4 X5 X8]`, async () => {
  let [opened, crashes, quarantines, rollBacks] = [0, 0, 0, 0];
  for (let seed = 1; seed <= SEEDS; seed += 1) {
    const result = await simulate({ seed });
    assert.equal(result.broken, null, storyOf(result));
    opened += result.opened;
    crashes += result.crashes;
    quarantines += result.quarantines;
    rollBacks += result.rollBacks;
  }
  // Lives in which nothing happens would prove nothing.
  const tally = { opened, crashes, quarantines, rollBacks };
  assert.ok(opened > SEEDS && crashes > SEEDS && quarantines > SEEDS && rollBacks > 0, JSON.stringify(tally));
});

for (const { seed, only, was } of KEPT_SEEDS) {
  test(`seed ${seed} goes well again: ${was} [X4]`, async () => {
    const result = await simulate({ seed, ...(only === undefined ? {} : { only: new Set(only) }) });
    assert.equal(result.broken, null, storyOf(result));
  });
}

test('the same seed tells the same story', async () => {
  const [first, second] = [await simulate({ seed: 7 }), await simulate({ seed: 7 })];
  assert.deepEqual(first, second);
  assert.notDeepEqual(first.story, (await simulate({ seed: 8 })).story);
});

/** Lives until what is broken on purpose is found. */
async function findMutation(mutation: Mutation): Promise<SimResult> {
  const { complaint } = MUTATIONS[mutation];
  for (let seed = 1; seed <= MUTANT_SEEDS_MAX; seed += 1) {
    const result = await simulate({ seed, mutation });
    if (result.broken !== null && complaint.test(result.broken)) return result;
  }
  assert.fail(`${MUTANT_SEEDS_MAX} lives did not find ${mutation}`);
}

// The cast holds: the names are the keys of the table.
const names = Object.keys(MUTATIONS) as readonly Mutation[];
const SAMPLE: ReadonlySet<Mutation> = new Set(['opens-before-record', 'mixes-drives', 'leaks-pins']);
for (const mutation of names.filter((each) => isFull || SAMPLE.has(each))) {
  test(`a host that ${mutation.replaceAll('-', ' ')} is found, with a story [A11 X2 X5]`, async () => {
    const { story } = await findMutation(mutation);
    assert.ok(story.length > 3 && story.length <= 60);
  });
}

test('each invariant has a guard that is broken on purpose', () => {
  const broken = new Set<string>(Object.values(MUTATIONS).map(({ breaks }) => breaks));
  assert.deepEqual(
    Object.keys(INVARIANTS).filter((each) => !broken.has(each)),
    [],
  );
});

test('a story is shrunk to the steps that matter, and tells the same again', async () => {
  const found = await findMutation('opens-before-record');
  const options = { seed: found.seed, mutation: 'opens-before-record' } as const;
  const { result, only } = await shrink(options, found.broken ?? '');
  assert.ok(only.size <= 5, `${only.size} acts are left`);
  assert.deepEqual(await simulate({ ...options, only }), result);
});
