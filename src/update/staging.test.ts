// What counts as known of a VM that is off, and what is told of it.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AuditRecord } from '../audit/record.ts';
import { systemClock } from '../base/clock.ts';
import { silentLog } from '../base/log.ts';
import { openDatabase } from '../base/sqlite.ts';
import type { VmSpec } from '../hypervisor/vm-spec.ts';
import { InspectError } from '../inspect/errors.ts';
import type { DiskReport } from '../inspect/inspect-disk.ts';
import { INVENTORY_MIGRATIONS, makeInventoryStore } from '../inventory/inventory-store.ts';
import type { VmId } from '../model/ids.ts';
import type { InstalledProduct, Inventory } from '../model/inventory.ts';
import { DEFAULT_POLICY, type Policy } from '../model/policy.ts';
import { Staging } from './staging.ts';
import type { RunState } from './state.ts';

const VM = 'web' as VmId; // Letters are a VM's name.
const OFF: RunState = { kind: 'off' };
const never = new AbortController().signal;
const SPEC: VmSpec = {
  ...{ format: 'pratique.vm/1', kind: 'managed', vm: VM, machine: 'q35', memoryMiB: 64, cpus: 1, nics: [] },
  disks: [{ id: 'root', path: '/d/root.raw', format: 'raw' }],
};
const ATTACHED: VmSpec = {
  ...{ format: 'pratique.vm/1', kind: 'attached', vm: VM, qmpSocket: '/q', channelSocket: '/c', nics: [] },
};

const inventoryOf = (...versions: readonly string[]): Inventory => ({
  os: { id: 'debian', versionId: '12', arch: 'amd64' },
  products: versions.map(
    (version, index): InstalledProduct => ({ ecosystem: 'debian', product: `p${index}`, version, state: 'installed' }),
  ),
  config: [],
  agent: { version: '0.1.0', digest: null },
  abilities: { drives: [], compressions: ['none'] },
  freeBytes: 1,
  rebootRequired: false,
  lastShutdown: null,
});

const reportOf = (inventory: Inventory): DiskReport => ({
  ...{ disk: 'root', format: 'raw', sizeBytes: 1, table: 'none', partition: null, filesystem: 'ext4', inventory },
  ...{ lastRun: null, notes: ['it was not unmounted'], tookMs: 1 },
});

function makeOne(
  options: {
    readonly spec?: VmSpec;
    readonly policy?: Partial<Policy>;
    readonly disk?: () => Promise<DiskReport>;
  } = {},
) {
  const inventories = makeInventoryStore(openDatabase(':memory:', INVENTORY_MIGRATIONS));
  const notes: string[] = [];
  const records: AuditRecord[] = [];
  const looks = { count: 0 };
  const inspect = async () => {
    looks.count += 1;
    return await (options.disk ?? (async () => reportOf(inventoryOf('1', '2'))))();
  };
  const staging = new Staging(
    {
      inventories,
      clock: systemClock,
      log: silentLog,
      inspector: {
        inspect,
        inspectRunning: () => assert.fail('it does not run'),
        leave: async () => {},
        close: async () => {},
      },
      audit: {
        append: async (record) => {
          records.push(record);
          return { seq: 1, atMs: 0, prev: '', record, hash: '', signature: '' };
        },
      },
    },
    {
      vm: VM,
      spec: options.spec ?? SPEC,
      policy: () => ({ ...DEFAULT_POLICY, ...options.policy }),
      note: (_, text) => notes.push(text),
    },
  );
  const tell = (inventory: Inventory, source: 'report' | 'confirm') =>
    inventories.record(VM, { inventory, source, atMs: 1 });
  return { staging, inventories, notes, records, looks, tell };
}

test('a VM of which nothing is known is asked of its disk once, and that is known from then on [A1 A3]', async () => {
  const { staging, inventories, notes, looks } = makeOne();
  assert.deepEqual(await staging.inventory(never), inventoryOf('1', '2'));
  assert.equal(inventories.last(VM)?.source, 'disk');
  await staging.inventory(never);
  assert.equal(looks.count, 1);
  assert.deepEqual(notes, ['its disk tells: debian 12 amd64, 2 products', 'it was not unmounted']);
});

test('what the agent told stays what counts after a stop: no disk is read [A3 A6]', async () => {
  const { staging, tell, looks } = makeOne();
  tell(inventoryOf('7'), 'confirm');
  assert.deepEqual(await staging.inventory(never), inventoryOf('7'));
  assert.equal(looks.count, 0);
});

test('where the policy asks for the disk, what the agent told last is held against it once while the VM is off [A3 A6 X2]', async () => {
  const policy = { verify: 'disk' } as const;
  const { staging, tell, looks, notes, records } = makeOne({ policy });
  tell(inventoryOf('1', '3'), 'confirm');
  assert.deepEqual(await staging.inventory(never), inventoryOf('1', '3'), 'what it is staged with stays what it told');
  await staging.inventory(never);
  assert.equal(looks.count, 1);
  assert.match(notes.join(), /does not bear out what its agent told last.*debian\/p1 2 -> 3/);
  assert.match(staging.remark ?? '', /^Its disk does not bear out/);
  assert.deepEqual(
    records.map((record) => record.kind === 'disk-differs' && record.changed),
    [1],
  );
  const agreeing = makeOne({ policy });
  agreeing.tell(inventoryOf('1', '2'), 'confirm');
  await agreeing.staging.inventory(never);
  assert.deepEqual([agreeing.looks.count, agreeing.notes, agreeing.records], [1, [], []]);
});

test('neither against the policy nor of somebody else’s VM is a disk read', async () => {
  for (const options of [{ policy: { inspectDisk: false } }, { spec: ATTACHED }]) {
    const { staging, looks } = makeOne(options);
    assert.equal(await staging.inventory(never), null);
    assert.equal(looks.count, 0);
  }
});

test('a disk that cannot be looked into is said once, and the VM is not staged [A3]', async () => {
  const refusal = new InspectError('refused/cannot-look', 'cannot look inside /d/root.raw: the disk holds LVM', {
    next: 'wait',
  });
  const { staging, notes, inventories } = makeOne({ disk: () => Promise.reject(refusal) });
  assert.equal(await staging.inventory(never), null);
  assert.equal(await staging.inventory(never), null);
  assert.deepEqual(notes, ['cannot look inside /d/root.raw: the disk holds LVM; wait']);
  assert.equal(inventories.last(VM), null);
});

test('a look that was left because the VM starts ends the staging with it', async () => {
  const abort = new AbortController();
  const { staging, notes } = makeOne({
    disk: async () => {
      abort.abort(new Error('moved on'));
      throw new InspectError('conflict/inspect-left', 'left');
    },
  });
  await assert.rejects(staging.inventory(abort.signal), /moved on/);
  assert.deepEqual(notes, []);
});

test('a report that differs from the disk is told to people and recorded, one that agrees is no matter [A3 X2]', async () => {
  const agreeing = makeOne();
  await agreeing.staging.inventory(never);
  agreeing.staging.compare(inventoryOf('1', '2'));
  assert.match(agreeing.notes.join(), /reports what the disk told/);
  assert.deepEqual(agreeing.records, []);
  const differing = makeOne();
  await differing.staging.inventory(never);
  differing.staging.compare(inventoryOf('1', '3', '4'));
  const [record] = differing.records;
  assert(record?.kind === 'disk-differs');
  assert.deepEqual([record.vm, record.changed, record.missing, record.added], [VM, 1, 0, 1]);
  assert.equal(differing.notes.at(-1), record.detail);
  assert.match(differing.staging.remark ?? '', /^The agent reports something else/);
  assert.equal(agreeing.staging.remark, null);
  assert.match(record.detail, /1 product changed: debian\/p1 2 -> 3/);
});

test('a later report is held against nothing: what runs changes', () => {
  const { staging, tell, notes, records } = makeOne();
  tell(inventoryOf('1'), 'report');
  staging.compare(inventoryOf('2'));
  assert.deepEqual([notes, records], [[], []]);
});

test('whoever asks sees the disk beside what the agent told; the agent’s word stays what counts [A3]', async () => {
  const { staging, tell, inventories } = makeOne();
  const first = await staging.inspect(OFF, never);
  assert.deepEqual([first.counts, first.difference], ['disk', null]);
  assert.equal(inventories.last(VM)?.source, 'disk');
  tell({ ...inventoryOf('1', '9') }, 'confirm');
  inventories.record(VM, { inventory: inventoryOf('1', '9'), source: 'confirm', atMs: systemClock.nowMs() + 1 });
  const second = await staging.inspect(OFF, never);
  assert.deepEqual([second.counts, second.difference?.changed.count], ['confirm', 1]);
  assert.equal(inventories.last(VM)?.source, 'confirm');
});

test('the disk of a VM that runs, or of one that is attached, is not read [A3]', async () => {
  const { staging, looks } = makeOne();
  const run = { run: 'ab'.repeat(16) };
  // The cast holds: only the kind of the state counts here.
  const booting = { kind: 'booting', run } as unknown as RunState;
  await assert.rejects(staging.inspect(booting, never), { code: 'conflict/running' });
  await assert.rejects(makeOne({ spec: ATTACHED }).staging.inspect(OFF, never), { code: 'conflict/attached' });
  assert.equal(looks.count, 0);
});

test('what the agent told counts also when this host cannot write it down: its run goes on [A6 X4]', () => {
  const { staging, inventories } = makeOne();
  const { record } = inventories;
  const full = Object.assign(inventories, {
    record: () => {
      throw new Error('database or disk is full');
    },
  });
  assert.doesNotThrow(() => staging.learn(inventoryOf('3'), 'report'));
  assert.equal(inventories.last(VM), null);
  Object.assign(full, { record });
  staging.learn(inventoryOf('3'), 'report');
  assert.deepEqual(inventories.last(VM)?.inventory, inventoryOf('3'));
});
