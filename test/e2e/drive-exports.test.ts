// Drives over each transport on real VMs, while what carries them is killed: the daemon, and the process that exports a drive.
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chown, mkdtemp, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { digestOfFile } from '../../src/base/digest.ts';
import { isAlive, type ProcessId, parseProcessId } from '../../src/base/process-id.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { DRIVE_TRANSPORTS, type DriveTransport } from '../../src/model/drive.ts';
import { assertConnected, crash, type House, openHouse, type TestVm } from './harness.ts';
import { startOwn } from './own-qemu.ts';

/** Seconds for which each guest reads its whole drive again and again, past its page cache, unless it is told that it is done. */
const READ_SECONDS = 110;
/** A release of so many bytes is shown from the store's own blob, and takes a guest a second or so to read. */
const PADDING_BYTES = 6_000_000;

/**
 * What each pass over the drive came to, as a page of the guest's. A file that went away under QEMU is a read error until it is opened
 * anew; such a pass is told as that, and is no pass.
 */
const READ_ON = `
dev=$(/bin/busybox awk '$2 == "/run/pratique/drive" { print $1 }' /proc/mounts)
end=$(($(/bin/busybox date +%s) + ${READ_SECONDS}))
while [ $(/bin/busybox date +%s) -lt $end ]; do
  case $(/bin/busybox dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null) in *done*) break ;; esac
  { /bin/busybox dd if=$dev bs=256k iflag=direct 2>/run/dd || echo failed >/run/dd-failed; } | /bin/busybox sha256sum >/run/sum
  if [ -e /run/dd-failed ]; then
    rm /run/dd-failed
    echo "error $(/bin/busybox head -n 1 /run/dd)" >>/srv/www/reads
    /bin/busybox usleep 100000
  else
    echo "read $(/bin/busybox cut -d ' ' -f 1 /run/sum)" >>/srv/www/reads
  fi
done
`;

type Scene = { readonly house: House; readonly vms: Readonly<Record<DriveTransport, TestVm>> };

const exportFolder = ({ runFolder }: House, { vm }: TestVm): string => join(runFolder, 'drives', vm);

async function exportOf(house: House, vm: TestVm): Promise<ProcessId> {
  const found = parseProcessId(await readFile(join(exportFolder(house, vm), 'pid'), 'utf8'));
  assert(found !== null);
  return found;
}

async function descriptorOf({ folder }: House, { vm }: TestVm): Promise<string> {
  const drives = join(folder, 'data/drives', vm);
  const [run] = await readdir(drives);
  assert(run !== undefined);
  return join(drives, run, 'drive.vmdk');
}

/** Ends the process at a moment when the guest waits for it. */
async function crashUnderReader(victim: ProcessId): Promise<void> {
  process.kill(victim.pid, 'SIGSTOP');
  await systemClock.sleep(300);
  await crash(victim);
}

async function openScene(t: Parameters<typeof openHouse>[0]): Promise<Scene> {
  const house = await openHouse(t, { version: '1.1.0', installLines: READ_ON, paddingBytes: PADDING_BYTES });
  const vms = new Map<DriveTransport, TestVm>();
  for (const transport of DRIVE_TRANSPORTS)
    vms.set(transport, await house.addVm({ change: (spec) => ({ ...spec, drive: { transport } }) }));
  // The cast holds: every transport was put in just now.
  return { house, vms: Object.fromEntries(vms) as Scene['vms'] };
}

/** The drives as programs that nobody here wrote see them; what each guest is to read. */
async function judgeFromOutside({ house, vms }: Scene): Promise<Readonly<Record<string, string>>> {
  const expected: Record<string, string> = {};
  for (const vm of Object.values(vms)) {
    const plain = join(house.folder, `${vm.vm}.iso`);
    await runCommand(['qemu-img', 'convert', '-f', 'vmdk', '-O', 'raw', await descriptorOf(house, vm), plain]);
    expected[vm.vm] = await digestOfFile(plain);
  }
  const record = JSON.parse(await readFile(join(exportFolder(house, vms.nbd), 'export.json'), 'utf8'));
  const url = `nbd+unix:///${record.exportName}?socket=${join(exportFolder(house, vms.nbd), 'nbd')}`;
  const facts = JSON.parse(await runCommand(['nbdinfo', '--json', url]));
  assert.equal(facts.exports[0].is_read_only, true);
  const copy = join(house.folder, 'copy.iso');
  await runCommand(['nbdcopy', url, copy]);
  assert.equal(await digestOfFile(copy), expected[vms.nbd.vm]);
  const file = join(exportFolder(house, vms.file), 'drive.iso');
  const plain = join(house.folder, `${vms.file.vm}.iso`);
  const compared = await tryCommand(['qemu-img', 'compare', '-f', 'raw', '-F', 'raw', file, plain]);
  assert.equal(compared.exitCode, 0, compared.stderr);
  return expected;
}

async function readsOf(vm: TestVm): Promise<{ readonly digests: readonly string[]; readonly errors: number }> {
  const lines = ((await vm.page('/reads')) ?? '').trim().split('\n');
  const digests = lines.flatMap((line) => (line.startsWith('read ') ? [line.slice(5)] : []));
  return { digests, errors: lines.length - digests.length };
}

test('guests read on over each transport while the daemon and their exports are killed, and end connected [A4] [A9] [A16] [X4]', async (t) => {
  const scene = await openScene(t);
  const { house, vms } = scene;
  const all = Object.values(vms);
  await Promise.all(all.map((vm) => vm.start()));
  const attached = await Promise.all(all.map((vm) => vm.hear(/is attached \(/)));
  assert.deepEqual(
    attached.map(({ text }) => /\((.*)\)/.exec(text)?.[1]),
    DRIVE_TRANSPORTS.map((transport) => `${transport}, virtio-blk`),
  );
  await Promise.all(all.map((vm) => vm.reach('installing')));
  const expected = await judgeFromOutside(scene);

  const [nbd, file] = [await exportOf(house, vms.nbd), await exportOf(house, vms.file)];
  await house.daemon.kill();
  await crashUnderReader(nbd);
  await house.daemon.start();
  await vms.nbd.hear(/the process that served its drive .* started again/);
  const taken = await exportOf(house, vms.nbd);
  assert.notDeepEqual(taken, nbd, 'one that died meanwhile was started again');
  assert.deepEqual(await exportOf(house, vms.file), file, 'one that lived was taken over');

  await crashUnderReader(taken);
  await vms.nbd.hear(/was killed by SIGKILL; it was started again/);
  await crash(file);
  await vms.file.hear(/the process that served its drive .* started again/);

  // As much again with nothing in the way: what was opened anew is read, too.
  await systemClock.sleep(6_000);
  await Promise.all(all.map((vm) => vm.order('done')));
  for (const vm of all) {
    assert.equal(await vm.settle(), 'connected', (await house.service.whyVm(vm.vm)).reason);
    await assertConnected(vm, '1.1.0');
    const { digests, errors } = await readsOf(vm);
    t.diagnostic(`${vm.vm}: ${digests.length} passes, ${errors} read errors`);
    assert(digests.length > 1, `${vm.vm} read its drive`);
    assert.deepEqual([...new Set(digests)], [expected[vm.vm]], `${vm.vm} read what the host shows`);
    if (vm !== vms.file) assert.equal(errors, 0, `${vm.vm} noticed nothing`);
  }
  await assertNothingLeft(house);
});

/** A drive is withdrawn before the gate opens, and with it whatever exported it. */
async function assertNothingLeft({ runFolder }: House): Promise<void> {
  assert.deepEqual(await readdir(join(runFolder, 'drives')), [], 'no export is left');
  const mounts = await readFile('/proc/self/mountinfo', 'utf8');
  assert(!mounts.includes(runFolder), 'nor a mount');
  const processes = (await runCommand(['ps', '-ww', '-eo', 'args'])).split('\n');
  const left = processes.filter((line) => line.startsWith('qemu-storage-daemon') && line.includes(runFolder));
  assert.deepEqual(left, [], 'nor a process');
}

type Moment = {
  readonly transport: 'nbd' | 'file';
  readonly victim: 'export' | 'QEMU';
  readonly words: RegExp;
  readonly delayMs: number;
};

/** From the moment at which the guest looks for its drive to the one at which it installs from it. */
const MOMENTS: readonly Moment[] = (['nbd', 'file'] as const).flatMap((transport) =>
  [/is attached \(/, /the agent verified the drive/].flatMap((words) => [
    ...[0, 300, 1_000].map((delayMs) => ({ transport, victim: 'export', words, delayMs }) as const),
    { transport, victim: 'QEMU', words, delayMs: 0 } as const,
  ]),
);

const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const SEED = Number(process.env.PRATIQUE_TEST_SEED ?? Math.floor(systemClock.nowMs() % 1_000_000));

/** One run in which the export, or the QEMU that reads from it, is killed at this moment. */
async function runThrough(house: House, vm: TestVm, { transport, victim, words, delayMs }: Moment): Promise<string> {
  await vm.start();
  await vm.hear(words);
  await systemClock.sleep(delayMs);
  const before = await exportOf(house, vm);
  await crash(victim === 'export' ? before : await vm.qemu());
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');
  const told = (await vm.events()).map(({ text }) => text).filter((text) => /drive/.test(text));
  const story = `${transport}, ${victim} ${delayMs} ms after ${words.source}: ${told.join('; ')}`;
  // A VM that ends takes its export along, and gets another with its next offer.
  if (victim === 'export') assert.match(story, /was killed by SIGKILL.*; it was started again/);
  else assert.match(story, /is attached .*is attached /);
  assert(!(await isAlive(before)));
  return story;
}

test('an export or a QEMU killed at any moment of a run is there again, and the run ends connected [A9] [X4]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0', installSeconds: 1, paddingBytes: PADDING_BYTES });
  const moments = isFull
    ? MOMENTS
    : MOMENTS.filter((_, index) => index % (MOMENTS.length / 2) === SEED % (MOMENTS.length / 2));
  const how = `seed ${SEED} (PRATIQUE_TEST_SEED); PRATIQUE_TEST_FULL=1 runs all`;
  t.diagnostic(`${moments.length} of ${MOMENTS.length} moments, ${how}`);
  for (let index = 0; index < moments.length; index += 2) {
    const runs: Promise<string>[] = [];
    for (const moment of moments.slice(index, index + 2)) {
      const { transport } = moment;
      const vm = await house.addVm({ change: (spec) => ({ ...spec, drive: { transport } }) });
      runs.push(runThrough(house, vm, moment));
    }
    for (const story of await Promise.all(runs)) t.diagnostic(story);
    await assertNothingLeft(house);
  }
});

if (process.getuid?.() === 0) {
  test("somebody else's QEMU that may open none of our files gets its drive over NBD, or as one file [A16] [X1]", async (t) => {
    const house = await openHouse(t, { version: '1.1.0', paddingBytes: PADDING_BYTES });
    const transports: readonly DriveTransport[] = isFull ? ['nbd', 'file'] : [SEED % 2 === 0 ? 'nbd' : 'file'];
    for (const [index, transport] of transports.entries()) {
      const uid = 58_200 + index;
      const folder = await mkdtemp(join(house.folder, 'theirs-'));
      await chown(folder, uid, uid);
      const qemus: ChildProcess[] = [];
      const vm = await house.addVm({
        change: async (spec) => {
          const own = await startOwn({ ...spec, drive: { transport } }, { folder, isPaused: true, uid });
          qemus.push(own.qemu);
          const { qmpSocket } = own.attached;
          assert(await waitUntil(async () => existsSync(qmpSocket), systemClock, 10_000), 'its monitor is there');
          return own.attached;
        },
      });
      try {
        await vm.start();
        await vm.hear(/the agent verified the drive/);
        const asThey = ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--'];
        const opened = await tryCommand([...asThey, 'cat', await descriptorOf(house, vm)]);
        assert.match(opened.stderr, /Permission denied/);
        await crash(await exportOf(house, vm));
        await vm.hear(/was killed by SIGKILL; it was started again/);
        await assertConnected(vm, '1.1.0');
        t.diagnostic(`seed ${SEED}: ${transport}`);
        await assertNothingLeft(house);
      } finally {
        for (const qemu of qemus) qemu.kill('SIGKILL');
      }
    }
  });
}
