// The daemon's writer in a VM, on a disk that loses what was not flushed when the power goes: its file system is mended, its data folder
// taken out and opened by our own code. A seeded sample of the disk's writes and flushes; every one with PRATIQUE_TEST_FULL=1.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { printTable } from '../fakes/result-table.ts';
import { isFull, makeRandom, sample, seed } from './chance.ts';
import { isSaidToTheEnd, troubleIn } from './data-folder.ts';
import { type Recorded, recordGuest, saidBy, takeOut } from './losing-disk.ts';
import { ENDINGS, type Ending } from './recorded-disk.ts';
import { makeReplay } from './write-log.ts';

/** Writes and flushes after which the power is cut in a run that is not full. */
const SAMPLE_SIZE = 15;

type Result = { readonly after: string; readonly ending: Ending; readonly trouble: string | null };

describe('the data folder of a host in a VM whose power is cut [X4] [X6] [X2]', () => {
  let folder = '';
  let recorded: Recorded = { base: Buffer.alloc(0), entries: [] };
  const results: Result[] = [];
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'pratique-power-'));
    recorded = await recordGuest(folder);
    assert.ok(isSaidToTheEnd(saidBy(recorded.entries, recorded.entries.length)), 'the program came to its end');
  });
  after(() => rm(folder, { recursive: true, force: true }));

  const troubleOf = async (disk: Buffer, count: number): Promise<string | null> => {
    await rm(join(folder, 'after'), { recursive: true, force: true });
    return await troubleIn(await takeOut(disk, folder), saidBy(recorded.entries, count));
  };

  test('what is found is old or new, and all that was answered is there', async () => {
    const { base, entries } = recorded;
    const random = makeRandom();
    const diskAfter = makeReplay(base, entries);
    for (const count of sample([...entries.keys(), entries.length], SAMPLE_SIZE, random)) {
      for (const ending of ENDINGS) {
        const trouble = await troubleOf(diskAfter({ count, ending, random }), count).catch(String);
        const last = saidBy(entries, count).at(-1)?.kind ?? 'nothing';
        results.push({ after: last, ending, trouble: trouble && `after entry ${count}: ${trouble}` });
      }
    }
    const broken = results.filter(({ trouble }) => trouble !== null);
    assert.deepEqual(broken, [], `seed ${seed}`);
  });

  test('the log is whole: with all of it everything is there', async () => {
    const { base, entries } = recorded;
    const disk = makeReplay(base, entries)({ count: entries.length, ending: 'cut', random: makeRandom() });
    assert.equal(await troubleOf(disk, entries.length), null);
  });

  test('the log tells a disk that ignores flushes: on such a one answered things are lost', async () => {
    const { base, entries } = recorded;
    const writes = entries.filter(({ kind }) => kind === 'write');
    const disk = makeReplay(base, writes)({ count: writes.length, ending: 'cut', random: makeRandom() });
    assert.match(String(await troubleOf(disk, entries.length)), /was added and is gone/);
  });

  test('the table', (t) => {
    const flushes = recorded.entries.filter(({ kind }) => kind === 'flush').length;
    const all = (recorded.entries.length + 1) * ENDINGS.length;
    const title = `seed ${seed}, ${results.length} of ${all} cuts of a disk with ${flushes} flushes`;
    const rows = [...new Set(results.map((result) => result.after))].map((last) => {
      const resultOf = (ending: Ending): string => {
        const tried = results.filter((result) => result.after === last && result.ending === ending);
        return `${tried.filter(({ trouble }) => trouble === null).length} of ${tried.length} whole`;
      };
      const [killed, cut, torn] = ENDINGS.map(resultOf);
      return {
        'said last': last,
        'all kept': killed ?? '',
        'unflushed lost': cut ?? '',
        'some of it kept': torn ?? '',
      };
    });
    printTable(
      t,
      isFull ? `all: ${title}` : title,
      ['said last', 'all kept', 'unflushed lost', 'some of it kept'],
      rows,
    );
    assert.ok(rows.length > 2);
  });
});
