// Seeded lives keep every invariant, the same seed tells the same story, and what is broken on purpose is found.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Sabotage } from './host.ts';
import { simulate } from './simulate.ts';

const SEEDS = 150;
const SABOTAGE_SEEDS_MAX = 100;

test(`no invariant breaks in ${SEEDS} lives with crashes, failures, lies and bad moments [A11 X4 X5 X8]`, async () => {
  let [opened, crashes, quarantines, rollBacks] = [0, 0, 0, 0];
  for (let seed = 1; seed <= SEEDS; seed += 1) {
    const result = await simulate({ seed });
    assert.equal(result.broken, null, `seed ${seed}: ${result.broken}\n${result.story.join('\n')}`);
    opened += result.opened;
    crashes += result.crashes;
    quarantines += result.quarantines;
    rollBacks += result.rollBacks;
  }
  // Lives in which nothing happens would prove nothing.
  const tally = { opened, crashes, quarantines, rollBacks };
  assert.ok(opened > SEEDS && crashes > SEEDS && quarantines > SEEDS && rollBacks > SEEDS / 4, JSON.stringify(tally));
});

test('the same seed tells the same story', async () => {
  const [first, second] = [await simulate({ seed: 7 }), await simulate({ seed: 7 })];
  assert.deepEqual(first, second);
  assert.notDeepEqual(first.story, (await simulate({ seed: 8 })).story);
});

const SABOTAGES: Readonly<Record<Sabotage, RegExp>> = {
  'opens-on-installed': /drive and network|the gate is open/,
  'ignores-kexec': /the gate (stays|is) open/,
  'opens-before-record': /without any record|that nobody judged/,
  'discards-accepted': /it was plugged in with hello/,
  'forgets-failed': /offered again by itself/,
};
for (const [sabotage, complaint] of Object.entries(SABOTAGES)) {
  test(`a host that ${sabotage.replaceAll('-', ' ')} is found, with a story [A11 X5]`, async () => {
    for (let seed = 1; seed <= SABOTAGE_SEEDS_MAX; seed += 1) {
      // The cast holds: the names are the keys of the record above.
      const { broken, story } = await simulate({ seed, sabotage: sabotage as Sabotage });
      if (broken === null || !complaint.test(broken)) continue;
      assert.ok(story.length > 3 && story.length <= 60);
      return;
    }
    assert.fail(`${SABOTAGE_SEEDS_MAX} lives did not find it`);
  });
}
