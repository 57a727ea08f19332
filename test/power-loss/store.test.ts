// The data folder and the power: whatever call of the store, the journal, the audit or the trusted time it is cut at, what is found
// is old or new, nothing half-made is reachable, and all that was answered is there. A seeded sample of the calls by default; every
// call with PRATIQUE_TEST_FULL=1.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { printTable } from '../fakes/result-table.ts';
import { isFull, makeRandom, sample, seed } from './chance.ts';
import { isSaidToTheEnd, LIVES, type Said, troubleIn } from './data-folder.ts';
import { type DiskCall, ENDINGS, type Ending, recordCalls, replayCalls } from './recorded-disk.ts';

const VICTIM = join(import.meta.dirname, 'data-folder-victim.ts');
/** Calls at which the power is cut in a run that is not full. */
const SAMPLE_SIZE = 20;

/** Runs the victim on a folder of its own, and tells every call that it made to the disk. */
async function recordVictim(folder: string): Promise<readonly DiskCall[]> {
  const recorded = join(folder, 'recorded');
  await mkdir(recorded, { mode: 0o700 });
  const lives = `for life in ${LIVES.join(' ')}; do "$0" "$1" "$2" "$life" || exit; done`;
  // One thread for files: the log of strace then has the order in which things happened.
  const argv = ['env', 'UV_THREADPOOL_SIZE=1', 'sh', '-c', lives, process.execPath, VICTIM, recorded] as const;
  return await recordCalls(recorded, [...argv]);
}

function saidIn(calls: readonly DiskCall[]): readonly Said[] {
  const said = calls.map((call) => (call.kind === 'said' ? call.text : '')).join('');
  const lines = said.split('\n').filter((line) => line !== '');
  return lines.map((line) => JSON.parse(line) as Said); // The cast holds: our program says nothing else.
}

/** What the power is cut after, in the words of the table. */
function nameOf(call: DiskCall | undefined): string {
  if (call === undefined) return 'before anything';
  if (call.kind === 'said') return 'an answer';
  const path = 'name' in call ? call.name : call.to;
  const [room = '', part = ''] = path.split('/');
  const where = room === 'store' && part !== '' ? `store/${part.replace(/^catalog.*|^lock.*/, 'catalog')}` : room;
  return `${call.kind} in ${where.replace(/^pratique\.db.*/, 'journal').replace(/^trust-time.*/, 'trusted time') || 'data'}`;
}

type Cut = { readonly after: string; readonly ending: Ending; readonly trouble: string | null };

describe('the data folder at every call to the disk [X4] [X6]', () => {
  let folder = '';
  let calls: readonly DiskCall[] = [];
  const cuts: Cut[] = [];
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'pratique-power-'));
    calls = await recordVictim(folder);
    assert.ok(isSaidToTheEnd(saidIn(calls)), 'the program came to its end');
  });
  after(() => rm(folder, { recursive: true, force: true }));

  const troubleAfter = async (made: readonly DiskCall[], ending: Ending, random = makeRandom()) => {
    const target = join(folder, 'after');
    await replayCalls(made, { count: made.length, ending, random, target });
    return await troubleIn(target, saidIn(made)).catch(String);
  };

  test('the power is cut: what is found is old or new, and all that was answered is there', async () => {
    const random = makeRandom();
    for (const count of sample([...calls.keys()], SAMPLE_SIZE, random)) {
      for (const ending of ENDINGS) {
        const trouble = await troubleAfter(calls.slice(0, count), ending, random);
        cuts.push({ after: nameOf(calls[count - 1]), ending, trouble: trouble && `after call ${count}: ${trouble}` });
      }
    }
    const broken = cuts.filter(({ trouble }) => trouble !== null);
    assert.deepEqual(broken, [], `seed ${seed}`);
  });

  test('the recording is whole: with all of it everything is there', async () => {
    assert.equal(await troubleAfter(calls, 'cut'), null);
  });

  test('the recording tells a disk that keeps nothing: without its flushes answered things are lost', async () => {
    const unflushed = calls.filter(({ kind }) => kind !== 'sync');
    assert.notEqual(await troubleAfter(unflushed, 'cut'), null, 'without those of files');
    const unnamed = calls.filter(({ kind }) => kind !== 'sync-folder');
    assert.notEqual(await troubleAfter(unnamed, 'cut'), null, 'without those of folders');
  });

  test('the table', (t) => {
    const title = `seed ${seed}, ${cuts.length} of ${calls.length * ENDINGS.length} cuts`;
    const places = [...new Set(cuts.map((cut) => cut.after))].sort();
    const rows = places.map((place) => {
      const resultOf = (ending: Ending): string => {
        const tried = cuts.filter((cut) => cut.after === place && cut.ending === ending);
        const whole = tried.filter(({ trouble }) => trouble === null);
        return `${whole.length} of ${tried.length} whole`;
      };
      const [killed, cut, torn] = ENDINGS.map(resultOf);
      return {
        'cut after': place,
        'all kept': killed ?? '',
        'unflushed lost': cut ?? '',
        'some of it kept': torn ?? '',
      };
    });
    printTable(
      t,
      isFull ? `all: ${title}` : title,
      ['cut after', 'all kept', 'unflushed lost', 'some of it kept'],
      rows,
    );
    assert.ok(rows.length > 3);
  });
});
