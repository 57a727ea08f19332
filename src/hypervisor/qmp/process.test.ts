// Processes, run folders and the KVM probe.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest-text.ts';
import { KVM_MEMORY_MS } from '../../base/limits.ts';
import { silentLog } from '../../base/log.ts';
import { isAlive, parseProcessId } from '../../base/process-id.ts';
import { tryCommand } from '../../base/run-command.ts';
import type { VmId } from '../../model/ids.ts';
import { isProven, probeAccelerator, probeCommand, probeDisk } from './accel.ts';
import { chooseAccelerator } from './accel-memory.ts';
import { readLaunch, recordLaunch, runFiles } from './run-files.ts';

test('a pid that another process has now is not the process that had it [X4]', async (t) => {
  const child = spawn('sleep', ['60']);
  t.after(() => child.kill('SIGKILL'));
  const pid = child.pid ?? 0;
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  const startTicks = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]);
  assert.equal(await isAlive({ pid, startTicks }), true);
  assert.equal(await isAlive({ pid, startTicks: startTicks - 1 }), false);
  child.kill('SIGKILL');
  await once(child, 'exit');
  assert.equal(await isAlive({ pid, startTicks }), false);
});

test('a damaged pid file names no process', () => {
  assert.deepEqual(parseProcessId('12 3456\n'), { pid: 12, startTicks: 3456 });
  for (const text of ['', '12', '12 x', '-1 5', '12 3456 7', '12 3456\n\n'])
    assert.equal(parseProcessId(text), null, text);
});

test('a run folder too deep for unix sockets is refused with its length', () => {
  const deep = `/${'d'.repeat(90)}`;
  assert.throws(() => runFiles(deep, 'web-1' as VmId), { code: 'usage/socket-path', message: /has 1\d\d bytes/ });
});

test('a launch is known again, a damaged record is an error, and none is none [X4]', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pq-run-'));
  t.after(() => rm(folder, { recursive: true }));
  const files = runFiles(folder, 'web-1' as VmId);
  assert.equal(await readLaunch(files), null);
  const launch = {
    format: 'pratique.launch/1',
    vm: 'web-1' as VmId,
    specDigest: 'a'.repeat(64) as Digest,
    hostBoot: 'b',
    accelerator: 'tcg',
    uid: null,
    mark: null,
    launchedAtMs: 1,
  } as const;
  await recordLaunch(files, launch);
  assert.deepEqual(await readLaunch(files), { launch, process: null });
  await writeFile(files.pidFile, '12 34\n');
  assert.deepEqual((await readLaunch(files))?.process, { pid: 12, startTicks: 34 });
  await writeFile(files.launchFile, '{"format":"pratique.launch/1"}');
  await assert.rejects(readLaunch(files), { code: 'host-fault/launch-record' });
});

test('the probe runs to its end on an accelerator that works, and nothing else counts as proof', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pq-probe-'));
  t.after(() => rm(folder, { recursive: true }));
  const disk = join(folder, 'disk');
  await writeFile(disk, probeDisk());
  const result = await tryCommand(probeCommand('qemu-system-x86_64', 'tcg', disk), { timeoutMs: 30_000 });
  assert.equal(isProven(result.exitCode), true, result.stderr);
  // Without the boot sector's code the firmware finds nothing to boot, and nothing is proven.
  for (const exitCode of [0, 1, null]) assert.equal(isProven(exitCode), false);
});

test('a QEMU that is not there means TCG, not an error', async () => {
  assert.equal(await probeAccelerator('/nonexistent/qemu', systemClock, silentLog), 'tcg');
});

test('that KVM does not work is tried once, and again when anything is different', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pq-kvm-'));
  t.after(async () => await rm(folder, { recursive: true }));
  const [kvmDevice, qemuBinary, tries] = [join(folder, 'kvm'), join(folder, 'qemu'), join(folder, 'tries')];
  await writeFile(kvmDevice, '');
  await writeFile(qemuBinary, `#!/bin/sh\necho tried >>${tries}\nexit 1\n`, { mode: 0o755 });
  const choice = { qemuBinary, runFolder: join(folder, 'run'), clock: systemClock, log: silentLog, kvmDevice };
  const triesAfter = async () => {
    assert.equal(await chooseAccelerator(choice), 'tcg');
    return (await readFile(tries, 'utf8')).trim().split('\n').length;
  };
  assert.equal(await triesAfter(), 1);
  assert.equal(await triesAfter(), 1, 'remembered');
  await chmod(kvmDevice, 0o660);
  assert.equal(await triesAfter(), 2, 'somebody changed the device');
  await writeFile(join(folder, 'run/no-kvm.json'), '{"format":');
  assert.equal(await triesAfter(), 3, 'a damaged note says nothing');
  const later = { ...systemClock, nowMs: () => systemClock.nowMs() + KVM_MEMORY_MS };
  assert.equal(await chooseAccelerator({ ...choice, clock: later }), 'tcg');
  assert.equal(await triesAfter(), 5, 'an old one neither, nor one of tomorrow');
  await rm(kvmDevice);
  assert.equal(await triesAfter(), 5, 'without a device there is nothing to try');
});
