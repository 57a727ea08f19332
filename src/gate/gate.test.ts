// The gate over fake QEMUs and the kernel's own fence: what opens it, what closes it, and what it survives.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { makeNamespace } from '../../test/fakes/namespace.ts';
import { type FakeQemu, startFakeQemu } from '../../test/fakes/qemu.ts';
import type { AuditRecord } from '../audit/record.ts';
import { systemClock } from '../base/clock.ts';
import type { Digest } from '../base/digest-text.ts';
import { silentLog } from '../base/log.ts';
import { waitUntil } from '../base/wait-until.ts';
import { openFence } from '../hypervisor/fence.ts';
import type { RunningVm } from '../hypervisor/hypervisor.ts';
import { makeMachine } from '../hypervisor/qmp/machine.ts';
import { connectQmp } from '../hypervisor/qmp/qmp-client.ts';
import type { Evidence } from '../model/evidence.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { type GateGrant, makeGate } from './gate.ts';

const RUN = 'a'.repeat(32) as RunId;
const judged = new WeakSet<object>();
const isEvidence = (value: unknown): value is Evidence =>
  typeof value === 'object' && value !== null && judged.has(value);

function evidence(vm: VmId, run: RunId = RUN): Evidence {
  const facts = {
    vm,
    run,
    nonce: 'b'.repeat(32),
    boot: '0b8c1d52-7c6e-4f0a-9a51-2f6f1f0d3c44',
    planDigest: '1'.repeat(64) as Digest,
    manifestDigests: [],
    inventoryDigest: '2'.repeat(64) as Digest,
    items: [],
    vendors: [],
    judgedAtMs: 7,
  };
  judged.add(facts);
  return facts as unknown as Evidence; // The brand has no value; this test stands for the judge.
}

function grant(vm: VmId, run: RunId = RUN): GateGrant {
  return { kind: 'evidence', run, evidence: evidence(vm, run) };
}

async function house(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'pq-gate-'));
  const net = await makeNamespace();
  const fence = await openFence({ namespace: net.namespace, log: silentLog, clock: systemClock });
  await fence.ensure();
  const records: AuditRecord[] = [];
  const audit = { append: async (record: AuditRecord): Promise<unknown> => records.push(record) };
  const openGate = () =>
    makeGate({
      fenceFor: async () => fence,
      audit: (record) => audit.append(record),
      isEvidence,
      clock: systemClock,
      log: silentLog,
    });
  t.after(async () => {
    fence.close();
    await net.close();
    await rm(folder, { recursive: true });
  });
  const addVm = async (name: string): Promise<{ vm: RunningVm; qemu: FakeQemu; tap: string }> => {
    const tap = `pq${name}`;
    const qmpSocket = join(folder, `${name}.q`);
    const qemu = await startFakeQemu({ qmpSocket, nics: [{ id: 'nic-lan', tap }], trays: ['media-cd'] });
    const vm = makeMachine({
      vm: name as VmId,
      namespace: net.namespace,
      taps: [{ name: tap, nic: 'lan' }],
      nicDevices: ['nic-lan'],
      channelSocket: '',
      adopted: { kind: 'fresh' },
      missed: [],
      qmp: await connectQmp({ path: qmpSocket, clock: systemClock }),
      slots: { port: null, scsiBus: null, usbBus: null, tray: null },
      media: [{ device: 'media-cd', path: '/iso' }],
      agentPort: 'pratique-agent',
      isManaged: true,
      hasEnded: async () => false,
      kill: null,
      onEnded: async () => {},
      clock: systemClock,
      log: silentLog,
    });
    t.after(async () => {
      await vm.release();
      await qemu.close();
    });
    return { vm, qemu, tap };
  };
  const isPlugged = async ({ qemu, tap }: { qemu: FakeQemu; tap: string }) => ({
    link: qemu.links.get('nic-lan'),
    fence: (await fence.verify()).admitted.has(tap),
    media: qemu.inserted.size > 0,
  });
  return { gate: openGate(), net, fence, records, audit, addVm, isPlugged, openGate };
}

const CLOSED = { link: false, fence: false, media: false };
const OPEN = { link: true, fence: true, media: true };

test('evidence opens all three layers, after its record is on disk [A11] [X1] [X2]', async (t) => {
  const { gate, audit, addVm, isPlugged } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  assert.deepEqual(await isPlugged(one), CLOSED);
  let atRecord: unknown = null;
  audit.append = async () => {
    atRecord = await isPlugged(one);
  };
  const before = Date.now();
  const { linkUpAtMs } = await gate.open(one.vm, grant(one.vm.vm));
  assert.deepEqual(atRecord, CLOSED);
  assert.deepEqual(await isPlugged(one), OPEN);
  assert(linkUpAtMs >= before && linkUpAtMs <= Date.now());
  assert.equal(await gate.isAdmitted(one.vm), true);
  await gate.close(one.vm, 'guest reset');
  assert.deepEqual(await isPlugged(one), CLOSED);
  assert.equal(await gate.isAdmitted(one.vm), false);
});

test('nothing but judged evidence of this VM and this run opens [A11]', async (t) => {
  const { gate, addVm, isPlugged, records } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  const { vm } = one.vm;
  const forged = { ...evidence(vm) } as Evidence;
  const wrong: readonly GateGrant[] = [
    { kind: 'evidence', run: RUN, evidence: forged },
    { kind: 'evidence', run: RUN, evidence: evidence('other' as VmId) },
    { kind: 'evidence', run: 'c'.repeat(32) as RunId, evidence: evidence(vm) },
    { kind: 'evidence', run: RUN, evidence: null as unknown as Evidence },
    { kind: 'override', run: RUN, reason: ' ', actor: 'ann' },
    { kind: 'override', run: RUN, reason: 'the router', actor: '' },
  ];
  for (const each of wrong) await assert.rejects(gate.open(one.vm, each), /not plugged in/);
  assert.deepEqual(await isPlugged(one), CLOSED);
  assert.deepEqual(
    records.map((record) => record.kind),
    ['gate-closed'],
  );
});

test('a decision that cannot be recorded opens nothing [X2]', async (t) => {
  const { gate, audit, addVm, isPlugged } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  audit.append = () => Promise.reject(new Error('disk full'));
  await assert.rejects(gate.open(one.vm, grant(one.vm.vm)), { code: 'host-fault/gate-record' });
  assert.deepEqual(await isPlugged(one), CLOSED);
});

test('an override opens, and its record says who and why', async (t) => {
  const { gate, addVm, isPlugged, records } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  await gate.open(one.vm, { kind: 'override', run: RUN, reason: 'the router', actor: 'ann' });
  assert.deepEqual(await isPlugged(one), OPEN);
  assert.deepEqual(records.at(-1), { kind: 'override', vm: 'a', run: RUN, actor: 'ann', reason: 'the router' });
});

test('a guest that is confirmed twice is plugged once [A11]', async (t) => {
  const { gate, addVm, records } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  const first = await gate.open(one.vm, grant(one.vm.vm));
  const again = await gate.open(one.vm, grant(one.vm.vm));
  assert.equal(again.linkUpAtMs, first.linkUpAtMs);
  assert.equal(records.filter((record) => record.kind === 'gate-opened').length, 1);
});

test('a close that is asked for while the gate opens wins [A11]', async (t) => {
  const { gate, audit, addVm, isPlugged } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  const slow = Promise.withResolvers<void>();
  const records = audit.append;
  audit.append = async (record) => {
    if (record.kind === 'gate-opened') await slow.promise;
    return records(record);
  };
  const opening = gate.open(one.vm, grant(one.vm.vm));
  const closing = gate.close(one.vm, 'guest reset');
  slow.resolve();
  await assert.rejects(opening, { code: 'refused/closed-meanwhile' });
  await closing;
  assert.deepEqual(await isPlugged(one), CLOSED);
});

test('a close does not wait for an opening that waits for QEMU: the fence holds before the link comes up [A11] [X1]', async (t) => {
  const { gate, fence, addVm, isPlugged } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  const qemu = Promise.withResolvers<void>();
  const begun = Promise.withResolvers<void>();
  const slow: RunningVm = {
    ...one.vm,
    raiseLinks: async () => {
      begun.resolve();
      await qemu.promise;
      await one.vm.raiseLinks();
    },
    releaseMedia: () => assert.fail('media are not released once a close was asked for'),
  };
  const opening = gate.open(slow, grant(one.vm.vm));
  await begun.promise;
  assert.equal(await fence.isAdmitted(one.tap), true);
  const closing = gate.close(slow, 'the guest booted again');
  assert.ok(await waitUntil(async () => !(await fence.isAdmitted(one.tap)), systemClock, 10_000, 5));
  assert.equal(one.qemu.links.get('nic-lan'), false);
  qemu.resolve();
  await assert.rejects(opening, { code: 'host-fault/gate-open' });
  await closing;
  assert.deepEqual(await isPlugged(one), CLOSED);
});

test('a session that ends while its gate is being opened opens nothing, also before anybody asks for a close [A11]', async (t) => {
  const { gate, audit, addVm, isPlugged } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  let isCurrent = true;
  const judgement = { kind: 'evidence', run: RUN, evidence: evidence(one.vm.vm), isCurrent: () => isCurrent } as const;
  const records = audit.append;
  audit.append = async (record) => {
    if (record.kind === 'gate-opened') isCurrent = false;
    return records(record);
  };
  await assert.rejects(gate.open(one.vm, judgement), { code: 'refused/closed-meanwhile' });
  assert.deepEqual(await isPlugged(one), CLOSED);

  audit.append = records;
  isCurrent = true;
  const slow: RunningVm = {
    ...one.vm,
    raiseLinks: async () => {
      await one.vm.raiseLinks();
      isCurrent = false;
    },
  };
  await assert.rejects(gate.open(slow, judgement), { code: 'host-fault/gate-open' });
  assert.deepEqual(await isPlugged(one), CLOSED);
  isCurrent = true;
  await gate.open(one.vm, judgement);
  assert.deepEqual(await isPlugged(one), OPEN);
});

test('a VM runs only behind a fence that stands, with its tap not admitted [A2] [X1]', async (t) => {
  const { gate, net, fence, addVm } = await house(t);
  const one = await addVm('a');
  await assert.doesNotReject(gate.close(one.vm, 'start'));
  await net.run('nft', 'delete', 'table', 'bridge', 'pratique');
  await assert.rejects(gate.resume(one.vm), { code: 'refused/gate-not-closed' });
  assert.equal(one.qemu.status(), 'prelaunch');
  await gate.close(one.vm, 'fence was gone');
  await fence.admit([one.tap]);
  await assert.rejects(gate.resume(one.vm), { code: 'refused/gate-not-closed' });
  await gate.close(one.vm, 'again');
  await gate.resume(one.vm);
  assert.equal(one.qemu.status(), 'running');
  assert.equal(one.qemu.links.get('nic-lan'), false);
});

test('a VM whose gate is open is not resumed: it would start where it must not [A2]', async (t) => {
  const { gate, addVm } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  await gate.open(one.vm, grant(one.vm.vm));
  await assert.rejects(gate.resume(one.vm), { code: 'refused/gate-not-closed' });
});

test('closing does what it can when QEMU is gone, and says what it could not [A11] [X1]', async (t) => {
  const { gate, addVm, isPlugged } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  await gate.open(one.vm, grant(one.vm.vm));
  await one.qemu.close();
  await assert.rejects(gate.close(one.vm, 'doubt'), /could not close the links, the removable media/);
  assert.equal((await isPlugged(one)).fence, false);
  await assert.rejects(gate.resume(one.vm), { code: 'refused/gate-not-closed' });
});

test('a link that cannot be raised leaves the gate closed [A11]', async (t) => {
  const { gate, fence, addVm } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  const broken: RunningVm = { ...one.vm, raiseLinks: () => Promise.reject(new Error('no')) };
  await assert.rejects(gate.open(broken, grant(one.vm.vm)), { code: 'host-fault/gate-open' });
  assert.equal(await fence.isAdmitted(one.tap), false);
  assert.equal(one.qemu.links.get('nic-lan'), false);
});

test('after a restart nothing runs on before it is closed again, and admission is read from the kernel [A11] [X4]', async (t) => {
  const { gate, net, fence, addVm, openGate } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  const again = openGate();
  await assert.rejects(again.resume(one.vm), { code: 'refused/gate-not-closed' });
  await gate.open(one.vm, grant(one.vm.vm));
  assert.equal(await again.isAdmitted(one.vm), true);
  await net.run('nft', 'delete', 'table', 'bridge', 'pratique');
  assert.equal(await again.isAdmitted(one.vm), false);
  await fence.ensure();
  assert.equal(await again.isAdmitted(one.vm), false);
});

test('a close that cannot be recorded is closed all the same [A11]', async (t) => {
  const { gate, audit, addVm, isPlugged } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  await gate.open(one.vm, grant(one.vm.vm));
  audit.append = () => Promise.reject(new Error('disk full'));
  await assert.rejects(gate.close(one.vm, 'doubt'), /disk full/);
  assert.deepEqual(await isPlugged(one), CLOSED);
});

test('a hundred VMs that open at once are all plugged in within milliseconds of each other', async (t) => {
  const { gate, addVm, isPlugged } = await house(t);
  const all = await Promise.all(Array.from({ length: 100 }, (_, index) => addVm(`vm${index}`)));
  await Promise.all(all.map(({ vm }) => gate.close(vm, 'start')));
  const tookMs = await Promise.all(
    all.map(async ({ vm }) => {
      const start = Date.now();
      const { linkUpAtMs } = await gate.open(vm, grant(vm.vm));
      return linkUpAtMs - start;
    }),
  );
  tookMs.sort((a, b) => a - b);
  t.diagnostic(`asked to link up: p50 ${tookMs[49]} ms, p99 ${tookMs[98]} ms`);
  for (const one of all) assert.deepEqual(await isPlugged(one), OPEN);
  // The figure that counts is the benchmark's; this only catches a process per opening (seconds).
  assert((tookMs[98] ?? 0) < 2000);
});

test('an override of what evidence has just opened is recorded with who and why [X2]', async (t) => {
  const { gate, addVm, records, isPlugged } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  await gate.open(one.vm, grant(one.vm.vm));
  await gate.open(one.vm, { kind: 'override', run: RUN, reason: 'the router', actor: 'ann' });
  assert.equal(records.at(-1)?.kind, 'override');
  assert.deepEqual(await isPlugged(one), OPEN);
});

test('a VM whose monitor is out of reach is fenced by the names of its taps [A11 X1]', async (t) => {
  const { gate, net, addVm, isPlugged, records } = await house(t);
  const one = await addVm('a');
  await gate.close(one.vm, 'start');
  await gate.open(one.vm, grant(one.vm.vm));
  await gate.fenceOff(one.vm.vm, net.namespace, [one.tap], 'it could not be taken over');
  assert.equal((await isPlugged(one)).fence, false);
  assert.deepEqual(records.at(-1), { kind: 'gate-closed', vm: 'a', reason: 'it could not be taken over' });
});
