// Drives served by real qemu-storage-daemons, judged by libnbd's and QEMU's own programs; their processes killed, their remains found.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { writePlainImage } from '../../../test/fakes/image-readers.ts';
import { systemClock } from '../../base/clock.ts';
import { type Digest, digestOf } from '../../base/digest.ts';
import { PratiqueError } from '../../base/errors.ts';
import { EXPORT_LOOK_MS, EXPORT_STARTS_MAX } from '../../base/limits.ts';
import { silentLog } from '../../base/log.ts';
import { isAlive, type ProcessId, parseProcessId } from '../../base/process-id.ts';
import { runCommand, tryCommand } from '../../base/run-command.ts';
import { waitUntil } from '../../base/wait-until.ts';
import type { DriveSource } from '../../model/drive.ts';
import type { VmId } from '../../model/ids.ts';
import { DriveError } from '../drive-error.ts';
import { grantFolder, writeDriveFolder } from '../drive-folder.ts';
import { buildIso } from '../iso9660.ts';
import { planZeroCopyImage } from '../zero-copy-image.ts';
import { type DriveExports, type ExportTransport, type ExportWatcher, makeDriveExports } from './exports.ts';
import { countMounts } from './mounts.ts';

// The cast holds: letters and digits are a VM's name.
const VM = 'web1' as VmId;
const IS_ROOT = process.getuid?.() === 0;
const UID = 58_123;
const OWNER = { licenses: ['antivirus'], ...(IS_ROOT ? { owner: { uid: UID, gid: UID } } : {}) };
const TRANSPORTS: readonly ExportTransport[] = ['nbd', 'file'];

let scratch = '';
let runFolder = '';
const opened: DriveExports[] = [];
before(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'pqx'));
  await chmod(scratch, 0o711);
});
after(async () => await rm(scratch, { recursive: true, force: true }));
beforeEach(async () => {
  runFolder = await mkdtemp(join(scratch, 'r'));
  await chmod(runFolder, 0o711);
});
afterEach(async () => {
  for (const exports of opened.splice(0)) await exports.close();
  const last = daemon();
  await last.recover(new Set());
  assert.deepEqual(await mountsBelow(runFolder), [], 'no mount is left');
});

/** The exports as one start of our daemon has them. */
function daemon(): DriveExports {
  const exports = makeDriveExports({ runFolder, clock: systemClock, log: silentLog });
  opened.push(exports);
  return exports;
}

type Drive = { readonly image: { readonly path: string }; readonly manifestDigest: string; readonly plain: string };

/** A drive of one packed and one linked blob, and the same as a plain file. */
async function makeDrive(word: string, folder = join(scratch, `${word}-drive`)): Promise<Drive> {
  const contents = [Buffer.from(`small ${word}`), Buffer.alloc(3_000_000, word)];
  const blobs = new Map(contents.map((content) => [digestOf(content), content]));
  const path = (digest: Digest) => join(scratch, digest);
  for (const [digest, content] of blobs) await writeFile(path(digest), content, { mode: 0o444 });
  const entries = [...blobs].map(([digest, { length }], index) => {
    return { path: `/packages/${index}`, sizeBytes: length, source: { kind: 'blob', digest } } as const;
  });
  const iso = buildIso(entries, { label: 'PRATIQUE' });
  const files = { folder, iso, plan: planZeroCopyImage(iso), blobs: { path, has: () => true } };
  await writeDriveFolder(files);
  await grantFolder(folder, IS_ROOT ? OWNER.owner : undefined);
  const plain = join(scratch, `${word}.iso`);
  // Every digest of the image is one of those above.
  await writePlainImage(plain, iso, (digest) => blobs.get(digest as Digest) ?? Buffer.alloc(0));
  return { image: { path: join(folder, 'drive.vmdk') }, manifestDigest: digestOf(word), plain };
}

type Told = { readonly restarts: string[]; readonly failures: unknown[]; refusal: DriveError | null };

function watcher(): { readonly told: Told; readonly watcher: ExportWatcher } {
  const told: Told = { restarts: [], failures: [], refusal: null };
  return {
    told,
    watcher: {
      mayServe: (licenses) => {
        assert.deepEqual(licenses, OWNER.licenses);
        if (told.refusal !== null) throw told.refusal;
      },
      onRestart: async (_source, why) => void told.restarts.push(why),
      onFailure: (error) => void told.failures.push(error),
    },
  };
}

const urlOf = (source: DriveSource): string =>
  source.kind === 'nbd' ? `nbd+unix:///${source.exportName}?socket=${source.socket}` : source.path;

/** Whether whoever opens the source now reads exactly these bytes. */
async function assertShows(source: DriveSource, { plain }: Drive): Promise<void> {
  const compared = await tryCommand(['qemu-img', 'compare', '-f', 'raw', '-F', 'raw', urlOf(source), plain]);
  assert.equal(compared.exitCode, 0, compared.stdout + compared.stderr);
}

async function processOf(vm: VmId = VM): Promise<ProcessId> {
  const found = parseProcessId(await readFile(join(runFolder, 'drives', vm, 'pid'), 'utf8'));
  assert(found !== null);
  return found;
}

async function kill({ pid }: ProcessId): Promise<void> {
  process.kill(pid, 'SIGKILL');
}

async function until(isDone: () => Promise<boolean> | boolean, what: string): Promise<void> {
  assert(await waitUntil(async () => await isDone(), systemClock, 15_000), `not within 15 s: ${what}`);
}

async function mountsBelow(folder: string): Promise<readonly string[]> {
  const table = await readFile('/proc/self/mountinfo', 'utf8');
  return table.split('\n').filter((line) => line.includes(folder));
}

const openFiles = async (): Promise<number> => (await readdir('/proc/self/fd')).length;

for (const transport of TRANSPORTS) {
  test(`a drive over ${transport} is the plain ISO byte for byte, read-only, and gone without a trace when withdrawn [A4] [A16]`, async () => {
    const drive = await makeDrive(`plain-${transport}`);
    const exports = daemon();
    const source = await exports.serve({ vm: VM, drive, transport, ...OWNER, watcher: watcher().watcher });
    await assertShows(source, drive);
    const found = await processOf();
    await exports.withdraw(VM);
    assert.equal(await isAlive(found), false);
    assert.deepEqual(await readdir(join(runFolder, 'drives')), []);
    assert.equal(exports.isServing(VM), false);
    await exports.withdraw(VM);
  });

  test(`a process over ${transport} that is killed is started again at the same place, and whoever attached the drive is told [A9] [X4]`, async () => {
    const drive = await makeDrive(`killed-${transport}`);
    const exports = daemon();
    const { told, watcher: watching } = watcher();
    const source = await exports.serve({ vm: VM, drive, transport, ...OWNER, watcher: watching });
    const first = await processOf();
    for (const round of [1, 2]) {
      await kill(await processOf());
      await until(() => told.restarts.length === round, `restart ${round}`);
      await assertShows(source, drive);
    }
    assert.notDeepEqual(await processOf(), first);
    if (source.kind === 'raw') assert.equal(await countMounts(source.path), 1, 'the stale mounts are gone');
    assert.deepEqual(told.failures, []);
  });

  test(`a daemon that starts anew goes on with what serves over ${transport}, and starts what died meanwhile [X4]`, async () => {
    const drive = await makeDrive(`anew-${transport}`);
    const before = daemon();
    const source = await before.serve({ vm: VM, drive, transport, ...OWNER, watcher: watcher().watcher });
    const found = await processOf();
    await before.close();

    const second = daemon();
    const { told, watcher: watching } = watcher();
    await second.recover(new Set([VM]));
    assert.deepEqual(await second.keep(VM, watching), source);
    assert.deepEqual(await processOf(), found, 'the same process');
    assert.deepEqual(await second.serve({ vm: VM, drive, transport, ...OWNER, watcher: watching }), source);
    assert.deepEqual(await processOf(), found, 'nor is it started anew when it is asked for');
    // It is not a child of this daemon's.
    await kill(found);
    await until(() => told.restarts.length === 1, 'the death of an adopted process is seen');
    await assertShows(source, drive);
    const last = await processOf();
    await second.close();

    await kill(last);
    await until(async () => !(await isAlive(last)), 'it is dead');
    const third = daemon();
    const again = watcher();
    await third.recover(new Set([VM]));
    assert.equal(again.told.restarts.length, 0);
    assert.deepEqual(await third.keep(VM, again.watcher), source);
    assert.equal(again.told.restarts.length, 1, 'whoever keeps it learns that it has to be opened anew');
    await assertShows(source, drive);
  });
}

test('an NBD client is told that the drive is read-only, is refused a write, and copies it whole [A4]', async () => {
  const drive = await makeDrive('judged');
  const source = await daemon().serve({ vm: VM, drive, transport: 'nbd', ...OWNER, watcher: watcher().watcher });
  const facts = JSON.parse(await runCommand(['nbdinfo', '--json', urlOf(source)]));
  const [shown] = facts.exports;
  assert.equal(shown.is_read_only, true);
  assert.equal(shown['export-size'], (await stat(drive.plain)).size);
  const copy = join(scratch, 'copy.iso');
  await runCommand(['nbdcopy', urlOf(source), copy]);
  assert.ok((await readFile(copy)).equals(await readFile(drive.plain)));
  const written = await tryCommand(['qemu-io', '-f', 'raw', '-c', 'write 0 512', urlOf(source)]);
  assert.match(written.stdout + written.stderr, /read-only|Permission denied/i);
  await assertShows(source, drive);
});

test('a client that still looks for the drive before is refused by the next one at the same address [A4]', async () => {
  const [one, two] = [await makeDrive('address-1'), await makeDrive('address-2')];
  const exports = daemon();
  const old = await exports.serve({ vm: VM, drive: one, transport: 'nbd', ...OWNER, watcher: watcher().watcher });
  const next = { vm: VM, drive: two, transport: 'nbd', ...OWNER, watcher: watcher().watcher } as const;
  await assert.rejects(exports.serve(next), { code: 'conflict/drive-export' });
  await assertShows(old, one);
  await exports.withdraw(VM);
  const source = await exports.serve(next);
  await assertShows(source, two);
  assert.notEqual((await tryCommand(['nbdinfo', '--size', urlOf(old)])).exitCode, 0);
});

test('a file that shows a drive cannot be written or removed [A4]', async () => {
  const drive = await makeDrive('file');
  const source = await daemon().serve({ vm: VM, drive, transport: 'file', ...OWNER, watcher: watcher().watcher });
  assert.equal(source.kind, 'raw');
  await assert.rejects(writeFile(urlOf(source), 'x', { flag: 'r+' }), { code: /EACCES|EROFS|EPERM/ });
  await assert.rejects(rm(urlOf(source)), { code: 'EBUSY' });
  await assertShows(source, drive);
});

if (IS_ROOT) {
  test("an export runs as the VM's own user with no right but mounting, and no other user reaches it [X1]", async () => {
    for (const transport of TRANSPORTS) {
      const drive = await makeDrive(`alone-${transport}`);
      const exports = daemon();
      const source = await exports.serve({ vm: VM, drive, transport, ...OWNER, watcher: watcher().watcher });
      const { pid } = await processOf();
      const status = await readFile(`/proc/${pid}/status`, 'utf8');
      assert.match(status, new RegExp(`^Uid:\\t${UID}\\t${UID}\\t${UID}\\t${UID}$`, 'm'));
      assert.match(status, /^NoNewPrivs:\t1$/m);
      // capability.h: CAP_SYS_ADMIN is 21.
      const rights = transport === 'file' ? '0000000000200000' : '0000000000000000';
      for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
        assert.match(status, new RegExp(`^${set}:\t${rights}$`, 'm'), `${transport}: ${set}`);
      const readAs = (uid: number) => {
        const as = ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--'];
        return tryCommand([...as, 'qemu-img', 'info', '-f', 'raw', urlOf(source)]);
      };
      assert.equal((await readAs(UID)).exitCode, 0, 'positive control');
      assert.match((await readAs(UID + 1)).stderr, /Permission denied/);
      await exports.withdraw(VM);
    }
  });

  test("another hypervisor's user may be let in, and only that one [A16]", async () => {
    const reader = { uid: UID + 5, gid: UID + 5 };
    for (const transport of TRANSPORTS) {
      const drive = await makeDrive(`reader-${transport}`);
      const exports = daemon();
      const source = await exports.serve({ vm: VM, drive, transport, ...OWNER, reader, watcher: watcher().watcher });
      for (const uid of [reader.uid, UID + 6]) {
        const as = ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--'];
        const { exitCode } = await tryCommand([...as, 'qemu-img', 'info', '-f', 'raw', urlOf(source)]);
        assert.equal(exitCode === 0, uid === reader.uid, `${transport}: ${uid}`);
      }
      await exports.withdraw(VM);
    }
  });
}

test('a process that dies whenever it is started is given up after a few starts, and whoever attached the drive is told what to do [A9]', async () => {
  const drive = await makeDrive('dying');
  const exports = daemon();
  const { told, watcher: watching } = watcher();
  await exports.serve({ vm: VM, drive, transport: 'nbd', ...OWNER, watcher: watching });
  for (let round = 1; round <= EXPORT_STARTS_MAX; round += 1) {
    await kill(await processOf());
    await until(() => told.restarts.length === round, `restart ${round}`);
  }
  await kill(await processOf());
  await until(() => told.failures.length === 1, 'it is given up');
  const [error] = told.failures;
  assert(error instanceof PratiqueError);
  assert.deepEqual([error.code, error.next !== undefined], ['host-fault/drive-export', true]);
  assert.equal(exports.isServing(VM), false);
  assert.deepEqual(await readdir(join(runFolder, 'drives')), []);
  const source = await exports.serve({ vm: VM, drive, transport: 'nbd', ...OWNER, watcher: watching });
  await assertShows(source, drive);
});

test('what may not be served any more is not started again, and may not be served in the first place [A15]', async () => {
  const drive = await makeDrive('license');
  const exports = daemon();
  const { told, watcher: watching } = watcher();
  await exports.serve({ vm: VM, drive, transport: 'file', ...OWNER, watcher: watching });
  told.refusal = new DriveError('refused/license', 'the lease has lapsed');
  await kill(await processOf());
  await until(() => told.failures.length === 1, 'it is told');
  assert.equal(told.failures[0], told.refusal);
  assert.deepEqual(told.restarts, []);
  await assert.rejects(exports.serve({ vm: VM, drive, transport: 'file', ...OWNER, watcher: watching }), {
    code: 'refused/license',
  });
  assert.deepEqual(await readdir(join(runFolder, 'drives')), []);
});

test('what an earlier daemon served and dies is not started again before somebody answers for it, who may refuse [A15]', async () => {
  const drive = await makeDrive('unanswered');
  const before = daemon();
  await before.serve({ vm: VM, drive, transport: 'nbd', ...OWNER, watcher: watcher().watcher });
  const found = await processOf();
  await before.close();
  const exports = daemon();
  await exports.recover(new Set([VM]));
  await kill(found);
  await until(async () => !(await isAlive(found)), 'it is dead');
  await systemClock.sleep(4 * EXPORT_LOOK_MS);
  assert.deepEqual(await processOf(), found, 'no other one was started');
  const { told, watcher: watching } = watcher();
  told.refusal = new DriveError('refused/license', 'the lease has lapsed');
  await exports.keep(VM, watching);
  await until(() => told.failures.length === 1, 'it is told');
  assert.deepEqual(await readdir(join(runFolder, 'drives')), []);
});

test('a drive that was built anew in the same folder never appears under the guest that reads the old one [A4]', async () => {
  const folder = join(scratch, 'same-folder');
  const drive = await makeDrive('old', folder);
  const exports = daemon();
  const { told, watcher: watching } = watcher();
  const source = await exports.serve({ vm: VM, drive, transport: 'file', ...OWNER, watcher: watching });
  const next = await makeDrive('new', folder);
  await assertShows(source, drive);
  await kill(await processOf());
  await until(() => told.failures.length === 1, 'it is given up');
  assert.match(String(told.failures[0]), /is not there any more/);
  assert.deepEqual(told.restarts, []);
  await assertShows(await exports.serve({ vm: VM, drive: next, transport: 'file', ...OWNER, watcher: watching }), next);
});

test('at its start a daemon ends what serves a VM that is gone, or cannot be understood, and leaves what is not ours [X4]', async () => {
  const drive = await makeDrive('left');
  const before = daemon();
  // The casts hold: letters and digits are VMs' names.
  const vms = ['gone', 'damaged', 'kept'].map((name) => name as VmId);
  for (const vm of vms) await before.serve({ vm, drive, transport: 'file', ...OWNER, watcher: watcher().watcher });
  const [gone, damaged, kept] = await Promise.all(vms.map((vm) => processOf(vm)));
  await before.close();
  await writeFile(join(runFolder, 'drives/damaged/export.json'), '{"format":');
  await writeFile(join(runFolder, 'drives/note'), 'not a folder');
  const exports = daemon();
  await exports.recover(new Set(vms.slice(1)));
  const alive = await Promise.all([gone, damaged, kept].map((each) => each !== undefined && isAlive(each)));
  assert.deepEqual(alive, [false, false, true]);
  assert.deepEqual((await readdir(join(runFolder, 'drives'))).sort(), ['kept', 'note']);
  assert.equal(await exports.keep(VM, watcher().watcher), null);
});

test('a launch that a dead daemon did not see through is ended before it becomes a process that nobody knows [X4] [A11]', async (t) => {
  const launch = async (vm: string) => {
    await mkdir(join(runFolder, 'drives', vm), { recursive: true });
    const words = ['-e', 'sleep 60', 'launch.pl', '--pid-file', join(runFolder, 'drives', vm, 'pid'), '--', 'true'];
    const child = spawn('perl', words, { stdio: 'ignore' });
    t.after(() => child.kill('SIGKILL'));
    return child;
  };
  const late = await launch(VM);
  const elsewhere = await launch('.not-a-vm');
  const hasBegun = async () => (await readFile(`/proc/${late.pid}/cmdline`, 'utf8')).startsWith('perl');
  assert(await waitUntil(hasBegun, systemClock, 5_000));
  await daemon().recover(new Set([VM]));
  assert(await waitUntil(async () => late.signalCode !== null, systemClock, 5_000), 'the launch is ended');
  assert.deepEqual(await readdir(join(runFolder, 'drives')), ['.not-a-vm']);
  assert.equal(elsewhere.signalCode, null, 'positive control: what is no launch of a VM here is left alone');
});

test('what was exported before the host booted is cleared away, and no process is taken for it [X4]', async () => {
  const drive = await makeDrive('booted');
  const before = daemon();
  await before.serve({ vm: VM, drive, transport: 'file', ...OWNER, watcher: watcher().watcher });
  const found = await processOf();
  await before.close();
  await kill(found);
  await until(async () => !(await isAlive(found)), 'it is dead');
  const recordFile = join(runFolder, 'drives', VM, 'export.json');
  const record = JSON.parse(await readFile(recordFile, 'utf8'));
  await writeFile(recordFile, JSON.stringify({ ...record, hostBoot: 'another' }));
  // A process of this boot that happens to have its number.
  const stranger = spawn('sleep', ['60']);
  try {
    const fields = (await readFile(`/proc/${stranger.pid}/stat`, 'utf8')).split(') ')[1]?.split(' ') ?? [];
    await writeFile(join(runFolder, 'drives', VM, 'pid'), `${stranger.pid} ${fields[19]}\n`);
    const exports = daemon();
    await exports.recover(new Set([VM]));
    assert.equal(await exports.keep(VM, watcher().watcher), null);
    assert.deepEqual(await readdir(join(runFolder, 'drives')), []);
    assert.equal(stranger.signalCode, null, 'the stranger lives');
    assert.equal(await isAlive({ pid: stranger.pid ?? 0, startTicks: Number(fields[19]) }), true);
  } finally {
    stranger.kill('SIGKILL');
  }
});

test('a foreign file in the way is left alone and named [A4]', async () => {
  const drive = await makeDrive('foreign');
  const folder = join(runFolder, 'drives', VM);
  const serve = async () =>
    await daemon().serve({ vm: VM, drive, transport: 'file', ...OWNER, watcher: watcher().watcher });
  await mkdir(folder, { recursive: true, mode: 0o755 });
  for (const name of ['diary', 'drive.iso']) {
    await writeFile(join(folder, name), 'dear diary');
    await assert.rejects(serve(), { code: 'host-fault/drive-export-folder' });
    assert.equal(await readFile(join(folder, name), 'utf8'), 'dear diary');
    await rm(join(folder, name));
  }
  await assertShows(await serve(), drive);
});

test('a process that hangs is ended by force, and its mount taken away without being asked [X4]', async () => {
  const drive = await makeDrive('hanging');
  const exports = daemon();
  await exports.serve({ vm: VM, drive, transport: 'file', ...OWNER, watcher: watcher().watcher });
  const found = await processOf();
  process.kill(found.pid, 'SIGSTOP');
  await exports.withdraw(VM);
  assert.equal(await isAlive(found), false);
  assert.deepEqual(await readdir(join(runFolder, 'drives')), []);
});

test('a drive that cannot be opened is an error with the words of the program, and nothing is left [A9]', async () => {
  const drive = await makeDrive('broken');
  await writeFile(drive.image.path, 'this is no descriptor');
  for (const transport of TRANSPORTS) {
    const serving = daemon().serve({ vm: VM, drive, transport, ...OWNER, watcher: watcher().watcher });
    await assert.rejects(serving, { code: 'host-fault/drive-export', message: /ended at once: qemu-storage-daemon: / });
  }
  assert.deepEqual(await readdir(join(runFolder, 'drives')), []);
});

test('a run folder too deep for unix sockets is refused with its length', async () => {
  const drive = await makeDrive('deep');
  const exports = makeDriveExports({ runFolder: `/${'d'.repeat(90)}`, clock: systemClock, log: silentLog });
  const serving = exports.serve({ vm: VM, drive, transport: 'nbd', ...OWNER, watcher: watcher().watcher });
  await assert.rejects(serving, { code: 'usage/socket-path', message: /has 1\d\d bytes/ });
});

test('twenty VMs at once, half of their processes killed, leave no process, mount or open file [X8]', async () => {
  const drive = await makeDrive('fleet');
  // The casts hold: letters and digits are VMs' names.
  const vms = Array.from({ length: 20 }, (_, index) => `fleet${index}` as VmId);
  const exports = daemon();
  const { told, watcher: watching } = watcher();
  const openBefore = await openFiles();
  const serve = (vm: VmId, index: number) =>
    exports.serve({ vm, drive, transport: index % 2 === 0 ? 'nbd' : 'file', ...OWNER, watcher: watching });
  const sources = await Promise.all(vms.map(serve));
  assert.equal(new Set(sources.map(urlOf)).size, vms.length);
  const victims = vms.slice(0, 10);
  for (const vm of victims) await kill(await processOf(vm));
  await until(() => told.restarts.length === victims.length, 'all are started again');
  await Promise.all(sources.map((source) => assertShows(source, drive)));
  const processes = await Promise.all(vms.map((vm) => processOf(vm)));
  await Promise.all(vms.map((vm) => exports.withdraw(vm)));
  for (const found of processes) assert.equal(await isAlive(found), false);
  assert.deepEqual(await mountsBelow(runFolder), []);
  assert.deepEqual(told.failures, []);
  await until(async () => (await openFiles()) <= openBefore, 'no descriptor is left');
});
