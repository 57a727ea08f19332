// The host's data folder as a daemon fills it, with every way in which the store, the journal, the audit and the trusted time write;
// and what has to be found in it wherever that was cut off, by who opens it next.
import assert from 'node:assert/strict';
import { chmod, mkdir, open, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { HOST_DATABASE, HOST_MIGRATIONS } from '../../proxy/databases.ts';
import { type Audit, openAudit } from '../../src/audit/audit.ts';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { silentLog } from '../../src/base/log.ts';
import { openDatabase } from '../../src/base/sqlite.ts';
import { openTrustTime, type TrustTime } from '../../src/base/trust-time.ts';
import type { RunId, VmId } from '../../src/model/ids.ts';
import type { Plan } from '../../src/model/plan.ts';
import { type BlobStore, openBlobStore } from '../../src/store/blob-store.ts';
import { type Journal, openJournal, type StoredVm } from '../../src/update/journal.ts';
import { STATES } from '../../src/update/samples.ts';
import type { Journaled } from '../../src/update/state.ts';

/** What the program says after a step, and, where the step takes something away, before it. */
export type Said =
  | { readonly kind: 'vm'; readonly vm: string }
  | { readonly kind: 'removing-vm' | 'vm-removed'; readonly vm: string }
  | { readonly kind: 'state'; readonly vm: string; readonly step: number }
  | { readonly kind: 'plan'; readonly run: string }
  | { readonly kind: 'failed-version'; readonly vm: string; readonly version: string }
  | { readonly kind: 'record'; readonly seq: number; readonly hash: string }
  | { readonly kind: 'pinned' | 'unpinning'; readonly owner: string; readonly blobs: readonly number[] }
  | { readonly kind: 'stored' | 'collecting' | 'rotting' | 'quarantined'; readonly blob: number }
  | { readonly kind: 'trusted'; readonly atMs: number }
  | { readonly kind: 'end' };

const PIECE_BYTES = 8192;
/** The vendor's blobs: of different sizes, not whole pages, each byte depending on its place. */
const BLOBS: readonly Buffer[] = [5_000, 30_000, 70_001, 12_288, 40_000, 1, 20_000].map((sizeBytes, index) =>
  Buffer.alloc(sizeBytes, `${index}: free pratique is granted to this ship. `.padEnd(61 + index, '.')),
);
const DIGESTS: readonly Digest[] = BLOBS.map((content) => digestOf(content));
const contentOf = (blob: number): Buffer => BLOBS[blob] ?? assert.fail(`blob ${blob}`);
const digestOfBlob = (blob: number): Digest => DIGESTS[blob] ?? assert.fail(`blob ${blob}`);

// The casts hold: short names, and 32 hex digits.
const vmOf = (name: string) => name as VmId;
const runOf = (count: number) => count.toString(16).padStart(32, '0') as RunId;
const SPEC: StoredVm['spec'] = {
  format: 'pratique.vm/1',
  kind: 'managed',
  vm: vmOf('web'),
  machine: 'q35',
  memoryMiB: 256,
  cpus: 1,
  disks: [{ id: 'root', path: '/srv/disks/web.raw', format: 'raw' }],
  nics: [{ id: 'net0', model: 'virtio-net-pci', mac: '52:54:00:00:00:01', bridge: 'pratique0' }],
};
const VMS = ['web', 'shop', 'gone'];
const recordOf = (vm: string): StoredVm => ({
  vm: vmOf(vm),
  uid: 100_000 + VMS.indexOf(vm),
  spec: SPEC,
  specDigest: digestOf(vm),
  own: {},
  group: null,
  journaled: journaledAt(0),
  sinceMs: 0,
});
/** Every state of a run in turn. */
const journaledAt = (step: number): Journaled => ({ step, state: STATES[step % STATES.length] ?? assert.fail() });
const planOf = (run: string): Plan => ({
  vm: vmOf('web'),
  run: runOf(Number.parseInt(run, 16)),
  items: [],
  leftOut: [],
  vendors: [{ vendor: 'acme', checkedAtMs: 7, fresh: true }],
});
const failedOf = (version: string) => ({ item: 'bundle/shop', version, atMs: 7, cause: 'the check failed' });

type Rooms = {
  readonly db: ReturnType<typeof openDatabase>;
  readonly trustTime: TrustTime;
  readonly journal: Journal;
  readonly audit: Audit;
  readonly store: BlobStore;
};
type Opening = { readonly clock: Clock; readonly budgetBytes: number; readonly schema?: number };

/** Opens a data folder in the order of the daemon. */
async function openRooms(folder: string, { clock, budgetBytes, schema }: Opening): Promise<Rooms> {
  const log = silentLog;
  const closers: (() => unknown)[] = [];
  try {
    const trustTime = await openTrustTime({ path: join(folder, 'trust-time.json'), clock, log });
    const db = openDatabase(join(folder, HOST_DATABASE), HOST_MIGRATIONS.slice(0, schema));
    closers.push(() => db.close());
    const audit = await openAudit({ folder: join(folder, 'audit'), clock, log });
    closers.push(() => audit.close());
    const store = await openBlobStore({ folder: join(folder, 'store'), clock, log, budgetBytes });
    return { db, trustTime, journal: openJournal(db), audit, store };
  } catch (error) {
    for (const close of closers) await close();
    throw error;
  }
}

async function closeRooms({ store, audit, journal, db, trustTime }: Rooms): Promise<void> {
  await store.close();
  await audit.close();
  journal.flush();
  db.close();
  await trustTime.save();
}

/** The vendor; one that breaks off stops for good after so many bytes, so that a part is left. */
function requestOf(blob: number, breakAtBytes = Number.POSITIVE_INFINITY) {
  const content = contentOf(blob);
  async function* pieces(offsetBytes: number): AsyncGenerator<Uint8Array> {
    for (let start = offsetBytes; start < content.length; start += PIECE_BYTES) {
      if (start >= breakAtBytes) throw new PratiqueError('vendor-ill/http-404', 'gone');
      yield content.subarray(start, start + PIECE_BYTES);
    }
  }
  const from = async (offsetBytes: number) => pieces(offsetBytes);
  return { digest: digestOfBlob(blob), sizeBytes: content.length, open: from };
}

type Say = (said: Said) => void;

/** Processes, one after another, because only another one finds what a crash left. */
export const LIVES = ['first', 'second'] as const;
export type Life = (typeof LIVES)[number];

/** Writes to one data folder what a daemon writes in one of its lives, and says each thing once it is promised. */
export async function fillDataFolder(folder: string, life: Life, say: Say): Promise<void> {
  if (life === 'first') {
    // The schema before the newest, so that the next life brings it forward.
    const first = { clock: systemClock, budgetBytes: 1e9, schema: HOST_MIGRATIONS.length - 1 };
    await firstLife(await openRooms(folder, first), say);
    return await plant(folder);
  }
  await secondLife(folder, await openRooms(folder, { clock: systemClock, budgetBytes: 110_000 }), say);
  await thirdLife(await openRooms(folder, { clock: systemClock, budgetBytes: 1e9 }), say);
  say({ kind: 'end' });
}

/** Ends without shutting anything, as a crash does. */
async function firstLife(rooms: Rooms, say: Say): Promise<void> {
  const { journal, store } = rooms;
  for (const vm of VMS) {
    journal.addVm(recordOf(vm));
    say({ kind: 'vm', vm });
  }
  await record(rooms, say);
  await passStates(rooms, say, { vm: 'web', from: 1, to: 4 });
  pin(store, say, 'run 1', [0, 1, 2]);
  for (const blob of [0, 1]) await fetch(store, say, blob);
  await store.ensure(requestOf(2, 40_000)).catch(() => {});
  await fetch(store, say, 2);
  await journal.savePlan(planOf(runOf(1)));
  say({ kind: 'plan', run: runOf(1) });
  // What comes in one moment shares one write.
  await Promise.all([
    passStates(rooms, say, { vm: 'web', from: 5, to: 6 }),
    passStates(rooms, say, { vm: 'shop', from: 1, to: 3 }),
    record(rooms, say),
    record(rooms, say),
  ]);
  await store.ensure(requestOf(4, 16_384)).catch(() => {});
  // Late, for it flushes the data folder itself: whatever relies on that shows before.
  await saveTime(rooms, say);
}

/** What earlier crashes may have left: a blob that the catalog does not know, one with other content, the part of another download. */
async function plant(folder: string): Promise<void> {
  for (const [blob, content] of [
    [3, contentOf(3)],
    [5, Buffer.from('rotten')],
  ] as const) {
    const digest = digestOfBlob(blob);
    const prefix = join(folder, 'store/blobs', digest.slice(0, 2));
    await mkdir(prefix, { recursive: true });
    await writeFile(join(prefix, digest), content);
  }
  await writeFile(join(folder, 'store/partial', digestOfBlob(6)), 'of an earlier life');
}

async function secondLife(folder: string, rooms: Rooms, say: Say): Promise<void> {
  const { journal, store, audit } = rooms;
  pin(store, say, 'run 2', [3, 4]);
  for (const blob of [3, 4, 5, 6]) await fetch(store, say, blob);
  await rot(folder, rooms, say);
  await journal.rememberFailed(vmOf('web'), [failedOf('2.0.0')]);
  say({ kind: 'failed-version', vm: 'web', version: '2.0.0' });
  const { seq, hash } = await audit.rotateKey({ actor: 'ann' });
  say({ kind: 'record', seq, hash });
  say({ kind: 'unpinning', owner: 'run 1', blobs: [0, 1, 2] });
  store.unpin('run 1');
  // Said before: from here on those over the budget may be gone.
  for (const blob of [0, 1, 2]) say({ kind: 'collecting', blob });
  await store.collect();
  await journal.savePlan(planOf(runOf(2)));
  say({ kind: 'plan', run: runOf(2) });
  say({ kind: 'removing-vm', vm: 'gone' });
  journal.removeVm(vmOf('gone'));
  say({ kind: 'vm-removed', vm: 'gone' });
  await passStates(rooms, say, { vm: 'web', from: 7, to: 9 });
  await closeRooms(rooms);
}

/** A byte turns over behind everybody's back; a scrub finds it, and the blob is fetched again. */
async function rot(folder: string, { store }: Rooms, say: Say): Promise<void> {
  const digest = digestOfBlob(1);
  say({ kind: 'rotting', blob: 1 });
  const path = join(folder, 'store/blobs', digest.slice(0, 2), digest);
  await chmod(path, 0o600);
  const file = await open(path, 'r+');
  await file.write('x', 10_000);
  await file.sync();
  await file.close();
  const { rotten } = await store.scrub();
  assert.deepEqual(
    rotten.map((each) => each.digest),
    [digest],
  );
  say({ kind: 'quarantined', blob: 1 });
  await fetch(store, say, 1);
}

/** Begins after an orderly end, in the same process, and ends as a crash does. */
async function thirdLife(rooms: Rooms, say: Say): Promise<void> {
  for (const blob of [0, 1, 2]) await fetch(rooms.store, say, blob);
  await record(rooms, say);
  await passStates(rooms, say, { vm: 'web', from: 10, to: 12 });
  await saveTime(rooms, say);
}

async function fetch(store: BlobStore, say: Say, blob: number): Promise<void> {
  await store.ensure(requestOf(blob));
  say({ kind: 'stored', blob });
}

function pin(store: BlobStore, say: Say, owner: string, blobs: readonly number[]): void {
  store.pin(owner, blobs.map(digestOfBlob));
  say({ kind: 'pinned', owner, blobs });
}

async function saveTime({ trustTime }: Rooms, say: Say): Promise<void> {
  const atMs = trustTime.nowMs();
  await trustTime.save();
  say({ kind: 'trusted', atMs });
}

async function record({ audit }: Rooms, say: Say): Promise<void> {
  const { seq, hash } = await audit.append({ kind: 'gate-closed', vm: vmOf('web'), reason: 'start' });
  say({ kind: 'record', seq, hash });
}

async function passStates(
  { journal }: Rooms,
  say: Say,
  { vm, from, to }: { readonly vm: string; readonly from: number; readonly to: number },
): Promise<void> {
  for (let step = from; step <= to; step += 1) {
    const journaled = journaledAt(step);
    journal.note({ vm: vmOf(vm), atMs: step, kind: 'state', state: journaled.state.kind, text: `step ${step}` });
    await journal.saveState(vmOf(vm), journaled, step);
    say({ kind: 'state', vm, step });
  }
}

/** Whether the program said all that it has to say. */
export const isSaidToTheEnd = (said: readonly Said[]): boolean =>
  said.length >= SAID_MIN && said.at(-1)?.kind === 'end';
const SAID_MIN = 40;

/** Where the runs go on to after the cut. */
const LATER_STEP = 20;

/** A host that was off and whose wall clock begins at its epoch. */
const laterClock: Clock = { ...systemClock, nowMs: () => 1_000 };

/**
 * Starts on what a cut left, holds it against what had been said until then, and goes on: fetches every blob, records, saves. Returns
 * what is wrong, null when nothing is.
 */
export async function troubleIn(folder: string, said: readonly Said[]): Promise<string | null> {
  const rooms = await openRooms(folder, { clock: laterClock, budgetBytes: 0 });
  let trouble: string | null;
  try {
    trouble =
      troubleInJournal(rooms.journal, said) ??
      (await troubleInAudit(rooms.audit, said)) ??
      troubleInTime(rooms.trustTime, said) ??
      (await troubleInStore(folder, rooms.store, said));
    for (const { vm } of rooms.journal.load()) await rooms.journal.saveState(vm, journaledAt(LATER_STEP), LATER_STEP);
  } finally {
    await closeRooms(rooms);
  }
  return trouble ?? (await troubleInNextLife(folder));
}

type SaidOf<Kind extends Said['kind']> = Said & { readonly kind: Kind };
const saidOf = <Kind extends Said['kind']>(said: readonly Said[], kind: Kind): readonly SaidOf<Kind>[] =>
  said.filter((each): each is SaidOf<Kind> => each.kind === kind);

function troubleInJournal(journal: Journal, said: readonly Said[]): string | null {
  const stored = new Map(journal.load().map((record) => [String(record.vm), record]));
  const removing = saidOf(said, 'removing-vm').map(({ vm }) => vm);
  for (const { vm } of saidOf(said, 'vm-removed')) if (stored.has(vm)) return `VM ${vm} was removed and is back`;
  for (const { vm } of saidOf(said, 'vm')) {
    if (!stored.has(vm) && !removing.includes(vm)) return `VM ${vm} was added and is gone`;
  }
  for (const [vm, { journaled, sinceMs, ...record }] of stored) {
    const { journaled: _, sinceMs: __, ...added } = recordOf(vm);
    if (!isDeepStrictEqual({ ...record }, added)) return `VM ${vm} is another one`;
    const answered = saidOf(said, 'state').findLast((state) => state.vm === vm)?.step ?? 0;
    const { step } = journaled;
    if (step < answered || step > answered + 1) return `VM ${vm} is at step ${step}, ${answered} was answered`;
    if (!isDeepStrictEqual(journaled, journaledAt(step)) || sinceMs !== step)
      return `VM ${vm} has half a state ${step}`;
  }
  return troubleInPlans(journal, said) ?? troubleInNotes(journal);
}

function troubleInPlans(journal: Journal, said: readonly Said[]): string | null {
  const last = saidOf(said, 'plan').at(-1)?.run;
  const plans = [runOf(1), runOf(2)].map((run) => journal.loadPlan(run)).filter((plan) => plan !== null);
  if (plans.length > 1) return 'a VM has two plans';
  for (const plan of plans) if (!isDeepStrictEqual(plan, planOf(plan.run))) return `plan ${plan.run} is another one`;
  if (last !== undefined && plans[0] === undefined) return `plan ${last} was answered and is gone`;
  if (last === runOf(2) && plans[0]?.run !== last) return `plan ${last} was answered, the one before is there`;
  for (const { vm, version } of saidOf(said, 'failed-version')) {
    if (!isDeepStrictEqual(journal.failedUpdates(vmOf(vm)), [failedOf(version)])) return `${version} counts as untried`;
  }
  return null;
}

function troubleInNotes(journal: Journal): string | null {
  const notes = journal.notes({ afterSeq: 0, limit: 1_000 });
  for (const vm of VMS) {
    const told = notes.filter((note) => note.vm === vm).map(({ atMs, text }) => `${text} at ${atMs}`);
    const expected = told.map((_, index) => `step ${index + 1} at ${index + 1}`);
    if (!isDeepStrictEqual(told, expected)) return `the notes of ${vm} have a gap: ${told.join(', ')}`;
  }
  return null;
}

async function troubleInAudit(audit: Audit, said: readonly Said[]): Promise<string | null> {
  const { isIntact, records, trouble } = await audit.verify();
  if (!isIntact) return `the chain is not intact: ${trouble}`;
  for (const { seq, hash } of saidOf(said, 'record')) {
    if (audit.entries({ afterSeq: seq - 1, limit: 1 })[0]?.hash !== hash)
      return `record ${seq} was answered and is gone`;
  }
  const { seq } = await audit.append({ kind: 'gate-closed', vm: vmOf('web'), reason: 'start' });
  return seq === records + 1 ? null : `record ${seq} came after ${records}`;
}

function troubleInTime(trustTime: TrustTime, said: readonly Said[]): string | null {
  const sureMs = saidOf(said, 'trusted').at(-1)?.atMs ?? 0;
  return trustTime.nowMs() >= sureMs ? null : 'time that was passed is believed to be still to come';
}

const lastSaidOf = (said: readonly Said[], blob: number): Said['kind'] | undefined =>
  said.findLast((each) => 'blob' in each && each.blob === blob)?.kind;

async function troubleInStore(folder: string, store: BlobStore, said: readonly Said[]): Promise<string | null> {
  for (const [blob, digest] of DIGESTS.entries()) {
    const last = lastSaidOf(said, blob);
    if (last === 'stored' && !store.has(digest)) return `blob ${blob} was stored and is gone`;
    const isWhole = !store.has(digest) || (await store.verify(digest));
    if (!isWhole && last !== 'rotting') return `blob ${blob} is there and is not whole`;
  }
  const quarantined = await readdir(join(folder, 'store/quarantine'));
  for (const { blob } of saidOf(said, 'quarantined')) {
    if (!quarantined.includes(digestOfBlob(blob))) return `what was in quarantine of blob ${blob} is gone`;
  }
  // Its budget is nothing: what is pinned stays, all else goes.
  const { removed } = await store.collect();
  const pinned = saidOf(said, 'pinned').filter(
    ({ owner }) => !saidOf(said, 'unpinning').some((each) => each.owner === owner),
  );
  for (const blob of pinned.flatMap(({ blobs }) => blobs)) {
    if (removed.includes(digestOfBlob(blob))) return `blob ${blob} was pinned and has been collected`;
  }
  for (const blob of DIGESTS.keys()) await store.ensure(requestOf(blob));
  for (const [blob, digest] of DIGESTS.entries())
    if (!(await store.verify(digest))) return `blob ${blob} was not mended`;
  return null;
}

/** Whoever starts after that finds nothing to mend. */
async function troubleInNextLife(folder: string): Promise<string | null> {
  const rooms = await openRooms(folder, { clock: laterClock, budgetBytes: 1e9 });
  try {
    if (!(await rooms.audit.verify()).isIntact) return 'the chain does not go on';
    const behind = rooms.journal.load().find(({ journaled }) => journaled.step !== LATER_STEP);
    if (behind !== undefined) return `the run of VM ${behind.vm} did not go on`;
    const lost = DIGESTS.findIndex((digest) => !rooms.store.has(digest));
    return lost < 0 ? null : `blob ${lost} was mended and is gone`;
  } finally {
    await closeRooms(rooms);
  }
}
