// The audit chain and the power: whatever call it is cut at, the chain is whole, holds every record that was answered, and goes on.
// A seeded sample of the calls by default; every call with PRATIQUE_TEST_FULL=1.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { openAudit } from '../../src/audit/audit.ts';
import { verifyFolder } from '../../src/audit/kept-chain.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { makeGate } from '../../src/gate/gate.ts';
import type { Fence } from '../../src/hypervisor/fence.ts';
import type { RunningVm } from '../../src/hypervisor/hypervisor.ts';
import type { Evidence } from '../../src/model/evidence.ts';
import { CLOSED, makeAuditFolder, openTestAudit, RUN, VM } from '../fakes/audit-chain.ts';
import { isFull, makeRandom, sample, seed } from './chance.ts';
import { type DiskCall, ENDINGS, recordCalls, replayCalls } from './recorded-disk.ts';

/** Calls at which the power is cut in a run that is not full. */
const SAMPLE_SIZE = 20;

const module = (path: string): string => JSON.stringify(new URL(`../../src/${path}`, import.meta.url).href);
const PRELUDE = `
  const { openAudit } = await import(${module('audit/audit.ts')});
  const { systemClock } = await import(${module('base/clock.ts')});
  const { silentLog } = await import(${module('base/log.ts')});
  const { writeSync } = await import('node:fs');
  const closed = ${JSON.stringify(CLOSED)};
  const open = () => openAudit({ folder: process.argv[1], clock: systemClock, log: silentLog });
  const say = (written) => writeSync(1, JSON.stringify(written) + '\\n');`;

/** Opens, appends, rotates, shuts in order (the log goes into the database), goes on, and ends without shutting. */
const PROGRAM = `${PRELUDE}
  const first = await open();
  for (let count = 0; count < 3; count += 1) say(await first.append(closed));
  say(await first.rotateKey({ actor: 'ann' }));
  await Promise.all(Array.from({ length: 5 }, async () => say(await first.append(closed))));
  await first.close();
  const second = await open();
  say(await second.append(closed));
  say(await second.rotateKey({ actor: 'bob' }));
  say(await second.append(closed));
  process.exit();`;
const RECORDS = 12;

type Written = { readonly seq: number; readonly hash: string; readonly keyid?: string };

async function makeFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-power-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

function promised(calls: readonly DiskCall[]): readonly Written[] {
  const said = calls.map((call) => (call.kind === 'said' ? call.text : '')).join('');
  return said
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Written); // The cast holds: our program says nothing else.
}

/** Starts on what the cut left. Returns what is wrong with it. */
async function troubleAfter(folder: string, answered: readonly Written[]): Promise<string | null> {
  const audit = await openAudit({ folder, clock: systemClock, log: silentLog });
  try {
    const { isIntact, records, trouble } = await audit.verify();
    if (!isIntact) return `not intact: ${trouble}`;
    for (const { seq, hash } of answered) {
      if (audit.entries({ afterSeq: seq - 1, limit: 1 })[0]?.hash !== hash)
        return `record ${seq} was answered and is gone`;
    }
    const { seq } = await audit.append(CLOSED);
    if (seq !== records + 1) return `record ${seq} came after ${records}`;
    await audit.rotateKey({ actor: 'after the crash' });
    const again = await audit.verify({ checkpoint: audit.checkpoint() });
    if (!again.isIntact) return `not intact after going on: ${again.trouble}`;
  } finally {
    await audit.close();
  }
  const left = (await readdir(folder)).filter((name) => name.includes('.next.') || name.endsWith('.new'));
  return left.length === 0 ? null : `left lying: ${left.join(', ')}`;
}

/** Runs the program on a chain of its own below the folder, and tells every call that it made to the disk. */
async function recordProgram(folder: string) {
  const recorded = join(folder, 'recorded');
  await mkdir(recorded, { mode: 0o700 });
  // One thread for files: the log of strace then has the order in which things happened.
  const program = [process.execPath, '--input-type=module', '-e', PROGRAM, recorded] as const;
  return await recordCalls(recorded, ['env', 'UV_THREADPOOL_SIZE=1', ...program]);
}

test('the power is cut at any call to the disk, and every answered record is there, in a chain that goes on [X2] [X4]', async (t) => {
  const folder = await makeFolder(t);
  const calls = await recordProgram(folder);
  assert.equal(promised(calls).length, RECORDS, 'the program came to its end');
  const random = makeRandom();
  const points = sample([...calls.keys(), calls.length], SAMPLE_SIZE, random);
  const target = join(folder, 'after');
  const broken: string[] = [];
  for (const count of points) {
    for (const ending of ENDINGS) {
      await replayCalls(calls, { count, ending, random, target });
      const trouble = await troubleAfter(target, promised(calls.slice(0, count))).catch(String);
      if (trouble !== null) broken.push(`${ending} after call ${count}: ${trouble}`);
    }
  }
  t.diagnostic(`${points.length} of ${calls.length} calls × ${ENDINGS.length} endings, seed ${seed}`);
  assert.deepEqual(broken, []);
  await replayCalls(calls, { count: calls.length, ending: 'killed', random, target });
  assert.deepEqual((await verifyFolder(target)).records, RECORDS, 'positive control: the recording is complete');
});

test('the recording tells a disk that keeps nothing: without its flushes answered records are lost [X4]', async (t) => {
  const folder = await makeFolder(t);
  const calls = (await recordProgram(folder)).filter(({ kind }) => kind !== 'sync');
  const target = join(folder, 'after');
  await replayCalls(calls, { count: calls.length, ending: 'cut', random: makeRandom(), target });
  assert.match(String(await troubleAfter(target, promised(calls)).catch(String)), /is gone|key|database/);
});

test('a log whose tail is cut or spoilt at any page loses nothing that was answered before [X2] [X4]', async (t) => {
  const source = await makeAuditFolder(t);
  const audit = await openTestAudit(t, source);
  const wal = join(source, 'audit.db-wal');
  const answered: { readonly written: Written; readonly logBytes: number }[] = [];
  for (let count = 0; count < 8; count += 1) {
    const written = await audit.append(CLOSED);
    answered.push({ written, logBytes: (await readFile(wal)).length });
  }
  const whole = await readFile(wal);
  const random = makeRandom();
  const frame = 24 + 4096;
  const cuts = Array.from({ length: Math.floor((whole.length - 32) / frame) + 1 }, (_, index) => 32 + index * frame);
  const target = join(await makeFolder(t), 'after');
  const places = cuts.flatMap((at) => [at, at + 24 + Math.floor(random() * 4_000)]);
  for (const cut of places.filter(() => isFull || random() < 0.25)) {
    for (const tail of ['lost', 'spoilt'] as const) {
      await rm(target, { recursive: true, force: true });
      await cp(source, target, { recursive: true, filter: (path) => !path.endsWith('-shm') });
      const rest = Buffer.from(whole.subarray(cut)).map((byte) => byte ^ 0x5a);
      await writeFile(
        join(target, 'audit.db-wal'),
        tail === 'lost' ? whole.subarray(0, cut) : Buffer.concat([whole.subarray(0, cut), rest]),
      );
      const kept = answered.filter(({ logBytes }) => logBytes <= cut).map(({ written }) => written);
      const trouble = await troubleAfter(target, kept).catch(String);
      assert.equal(trouble, null, `${tail} from byte ${cut}, seed ${seed}`);
    }
  }
  assert.ok(cuts.length > 8, `${cuts.length} pages`);
});

test('kill -9 at any moment, rotations among the records, leaves a whole chain with every answered record [X2] [X4]', async (t) => {
  const folder = await makeFolder(t);
  const random = makeRandom();
  const rounds = isFull ? 40 : 4;
  const program = `${PRELUDE}
    const audit = await open();
    for (let round = 0; ; round += 1) {
      await Promise.all(Array.from({ length: 1 + (round % 7) }, async () => say(await audit.append(closed))));
      if (round % 3 === 0) say(await audit.rotateKey({ actor: 'ann' }));
    }`;
  let total = 0;
  for (let round = 0; round < rounds; round += 1) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', program, folder], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let said = '';
    const enough = 10 + Math.floor(random() * 4_000);
    child.stdout.setEncoding('utf8').on('data', (piece: string) => {
      said += piece;
      if (said.length > enough) child.kill('SIGKILL');
    });
    await once(child, 'close');
    assert.equal(child.signalCode, 'SIGKILL');
    const lines = said.slice(0, said.lastIndexOf('\n')).split('\n');
    const answered = lines.map((line) => JSON.parse(line) as Written); // The cast holds: our program says nothing else.
    const offline = await verifyFolder(folder);
    assert.equal(offline.isIntact, true, `round ${round}, seed ${seed}: ${offline.trouble}`);
    assert.equal(await troubleAfter(folder, answered), null, `round ${round}, seed ${seed}`);
    total += answered.length;
  }
  t.diagnostic(`${rounds} kills, ${total} answered records, seed ${seed}`);
});

/** A folder that fills up: a file system of its own where that can be mounted. */
async function makeSmallDisk(
  t: TestContext,
): Promise<{ folder: string; fill: () => Promise<void>; relieve: () => Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-power-'));
  await runCommand(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'pratique-test', folder]);
  t.after(async () => {
    await runCommand(['umount', '--lazy', folder]);
    await rm(folder, { recursive: true });
  });
  const filler = join(folder, 'somebody-else');
  return {
    folder,
    // Ends in ENOSPC, as it should.
    fill: () => writeFile(filler, Buffer.alloc(2 * 1024 * 1024)).catch(() => {}),
    relieve: () => rm(filler),
  };
}

test('on a full disk a gate does not open, because its record cannot be written; with room again it does [X2] [A11]', async (t) => {
  if (process.getuid?.() !== 0) {
    t.diagnostic(
      'not root: a small disk cannot be mounted here; src/audit/audit.test.ts has the same with a refused insert',
    );
    return;
  }
  const disk = await makeSmallDisk(t);
  const audit = await openAudit({ folder: join(disk.folder, 'audit'), clock: systemClock, log: silentLog });
  const seen: string[] = [];
  const admitted = new Set<string>();
  // The casts hold for the gate: it uses these members only.
  const fence = {
    verify: async () => ({ fault: null, admitted, gated: new Set(['pqweb']) }),
    admit: async (taps: readonly string[]) => {
      seen.push('admitted');
      for (const tap of taps) admitted.add(tap);
    },
    expel: async (taps: readonly string[]) => {
      for (const tap of taps) admitted.delete(tap);
    },
  } as unknown as Fence;
  const vm = {
    vm: VM,
    namespace: null,
    taps: [{ name: 'pqweb', nic: 'lan' }],
    raiseLinks: async () => seen.push('raised'),
    lowerLinks: async () => {},
    releaseMedia: async () => {},
    withholdMedia: async () => {},
  } as unknown as RunningVm;
  const gate = makeGate({
    fenceFor: async () => fence,
    audit: async (record) => await audit.append(record),
    isEvidence: (value): value is Evidence => value !== null,
    log: silentLog,
  });
  const grant = { kind: 'override', run: RUN, reason: 'it routes', actor: 'ann' } as const;
  await audit.append(CLOSED);
  await disk.fill();
  let refused = 0;
  for (; refused < 3; refused += 1) await assert.rejects(gate.open(vm, grant), { code: 'host-fault/gate-record' });
  assert.deepEqual([seen, [...admitted]], [[], []], 'nothing moved');
  await assert.rejects(audit.rotateKey({ actor: 'ann' }));
  await disk.relieve();
  await gate.open(vm, grant);
  assert.deepEqual(seen, ['admitted', 'raised'], 'positive control');
  await audit.rotateKey({ actor: 'ann' });
  const { isIntact, records } = await audit.verify({ checkpoint: audit.checkpoint() });
  assert.deepEqual([isIntact, records], [true, 3], 'no half-written record was left');
  await audit.close();
});
