// What the doctor says of exported drives: missing things matter only to a VM that needs them.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VmSpec } from '../src/hypervisor/vm-spec.ts';
import type { DriveTransport } from '../src/model/drive.ts';
import { SAMPLE_SPEC } from '../test/fakes/service.ts';
import { checkExports } from './doctor-exports.ts';
import type { DoctorPorts } from './doctor-line.ts';

const FIT: DoctorPorts = {
  probeKvm: async () => true,
  run: async ([program = '']) => ({ exitCode: 0, text: `${program} 1.0` }),
  mayUse: async () => true,
  readText: async () => null,
  folder: async () => ({ freeBytes: 100e9, mode: 0o711 }),
  nowMs: () => 0,
  uid: 0,
};

async function lineOf(transport: DriveTransport, ports: Partial<DoctorPorts>): Promise<string> {
  const spec: VmSpec = { ...SAMPLE_SPEC, drive: { transport } };
  const { state, detail, mend } = await checkExports([spec], '/run/pratique', { ...FIT, ...ports });
  assert.equal(mend === null, state === 'ok');
  return `${state}: ${detail}${mend === null ? '' : `; ${mend}`}`;
}

const without = (missing: string): Partial<DoctorPorts> => ({
  run: async (argv) => (argv[0] === missing ? null : await FIT.run(argv)),
});

test('a host that has all it takes says so', async () => {
  for (const transport of ['direct', 'nbd', 'file'] as const)
    assert.equal(await lineOf(transport, {}), 'ok: drives can be shown over NBD and as files');
});

test('what is missing makes a host unfit for the VMs that need it, by name, and only then', async () => {
  const { vm } = SAMPLE_SPEC;
  const storage = without('qemu-storage-daemon');
  const shown = `unfit: qemu-storage-daemon is missing: no drive can be shown to ${vm}; install the package qemu-system-common`;
  assert.equal(await lineOf('nbd', storage), shown);
  assert.equal(await lineOf('file', storage), shown);
  assert.equal(await lineOf('direct', storage), 'ok: qemu-storage-daemon is missing; no VM needs it (nbd, file)');
  const noFuse = { mayUse: async (path: string) => path !== '/dev/fuse' };
  assert.match(await lineOf('file', noFuse), /^unfit: .*load the module fuse/);
  assert.match(await lineOf('nbd', noFuse), /^ok: /);
});

test('the run folder must let the users of VMs pass, and an ordinary user needs fusermount3', async () => {
  const locked = { folder: async () => ({ freeBytes: 1e9, mode: 0o700 }) };
  assert.match(await lineOf('nbd', locked), /^unfit: .*chmod o\+x \/run\/pratique/);
  assert.match(await lineOf('nbd', { ...locked, uid: 1000 }), /^ok: /, 'an ordinary user is the only one there');
  assert.match(await lineOf('file', { ...without('fusermount3'), uid: 1000 }), /^unfit: .*fuse3/);
  assert.match(await lineOf('file', without('fusermount3')), /^ok: /, 'root mounts by itself');
});
