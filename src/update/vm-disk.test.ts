// What is made of a look beside a running VM: an answer of its disk, or a failure of this host.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { RunningVm } from '../hypervisor/hypervisor.ts';
import type { VmSpec } from '../hypervisor/vm-spec.ts';
import type { FilesFinding } from '../inspect/check-files.ts';
import { InspectError } from '../inspect/errors.ts';
import type { RunningReport } from '../inspect/inspect-disk.ts';
import type { Inspector } from '../inspect/inspector.ts';
import type { VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import type { Plan } from '../model/plan.ts';
import { RUN } from './samples.ts';
import { VmDisk } from './vm-disk.ts';

const VM = 'web' as VmId; // Letters are a VM's name.
const never = new AbortController().signal;
const PLAN: Plan = { vm: VM, run: RUN, items: [], leftOut: [], vendors: [] };
const MANAGED: VmSpec = {
  ...{ format: 'pratique.vm/1', kind: 'managed', vm: VM, machine: 'q35', memoryMiB: 64, cpus: 1, nics: [] },
  disks: [
    { id: 'root', path: '/d/root.raw', format: 'raw' },
    { id: 'data', path: '/d/data.raw', format: 'raw' },
  ],
};
const ATTACHED: VmSpec = {
  ...{ format: 'pratique.vm/1', kind: 'attached', vm: VM, qmpSocket: '/r/qmp', channelSocket: '/r/agent', nics: [] },
};
const INVENTORY: Inventory = {
  os: { id: 'debian', versionId: '12', arch: 'amd64' },
  products: [{ ecosystem: 'debian', product: 'jq', version: '1', state: 'installed' }],
  config: [],
  agent: { version: '1', digest: null },
  abilities: { drives: [], compressions: ['none'] },
  freeBytes: 1,
  rebootRequired: false,
  lastShutdown: null,
};
const RIGHT: FilesFinding = { matching: 4, unread: 1, wrong: 0, first: [] };

function diskOf(options: { readonly spec?: VmSpec; readonly read?: () => Promise<RunningReport> }) {
  const asked: string[] = [];
  const inspector: Inspector = {
    inspect: () => assert.fail('it runs'),
    inspectRunning: async ({ disks }) => {
      asked.push(...disks);
      return await (options.read ?? (async () => reportOf(RIGHT)))();
    },
    leave: async () => {},
    close: async () => {},
  };
  // The casts hold: nothing else of the VM and of the store is asked for here.
  const running = { viewDisk: () => assert.fail('nobody reads in this test') } as unknown as RunningVm;
  const deps = { inspector, store: {} as never };
  const owner = { vm: VM, spec: options.spec ?? MANAGED, note: () => {}, running: () => running };
  return { disk: new VmDisk(deps, owner), asked };
}

const reportOf = (files: FilesFinding): RunningReport => ({
  ...{ sizeBytes: 1, table: 'none', partition: null, filesystem: 'ext4', inventory: INVENTORY },
  ...{ lastRun: null, notes: [], tookMs: 1, files },
});

test('a disk that bears a claim out is a witness with its numbers; all disks may be searched [A10]', async () => {
  const { disk, asked } = diskOf({});
  assert.deepEqual(await disk.check(PLAN, INVENTORY, never), { kind: 'agrees', matching: 4, unread: 1 });
  assert.deepEqual(asked, ['root', 'data']);
});

test('another version, or a file that is not what was sent, is a difference that is named [A10]', async () => {
  const { disk } = diskOf({});
  const claimed = { ...INVENTORY, products: INVENTORY.products.map((one) => ({ ...one, version: '2' })) };
  const lied = await disk.check(PLAN, claimed, never);
  assert(lied.kind === 'differs');
  assert.match(lied.detail, /debian\/jq 1 -> 2/);
  const wrong = { matching: 0, unread: 0, wrong: 1, first: ['debian/jq: /usr/bin/jq holds something else'] };
  const swapped = await diskOf({ read: async () => reportOf(wrong) }).disk.check(PLAN, INVENTORY, never);
  assert(swapped.kind === 'differs');
  assert.match(swapped.detail, /1 file of what was installed: .*jq holds something else/);
});

test('what lies on the disk is to blame for a disk that tells nothing; this host is for one that it cannot read [A10]', async () => {
  const failing = (code: InspectError['code']) =>
    diskOf({ read: () => Promise.reject(new InspectError(code, 'the disk holds LVM')) }).disk;
  for (const code of ['refused/cannot-look', 'guest-fault/disk-damaged'] as const) {
    const answer = await failing(code).check(PLAN, INVENTORY, never);
    assert(answer.kind === 'unread');
    assert.match(answer.detail, /LVM/);
  }
  await assert.rejects(failing('timeout/inspect').check(PLAN, INVENTORY, never), { code: 'timeout/inspect' });
  const attached = await diskOf({ spec: ATTACHED }).disk.check(PLAN, INVENTORY, never);
  assert(attached.kind === 'unread');
  assert.match(attached.detail, /somebody else started its QEMU/);
});
