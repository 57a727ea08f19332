// Who shares a look, who waits for it, and who does not.
import assert from 'node:assert/strict';
import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { DEBIAN_TREE, LOOK_UID, makeExt4, makeImageFolder, patch } from '../../test/fakes/disk-images.ts';
import { systemClock } from '../base/clock.ts';
import type { DiskImage } from '../model/disk-image.ts';
import type { VmId } from '../model/ids.ts';
import { makeInspector, type VmDisks } from './inspector.ts';

const WEB = 'web' as VmId; // Letters are a VM's name.
const never = new AbortController().signal;
let folder: string;
let path: string;
let empty: string;

before(async () => {
  folder = await makeImageFolder();
  path = await makeExt4({ folder, name: 'debian.raw', tree: DEBIAN_TREE });
  empty = await makeExt4({ folder, name: 'data.raw', tree: { 'data/x': 'x' } });
});
after(async () => {
  await rm(folder, { recursive: true });
});

const disk = (id: string, at: string) => ({ id, path: at, format: 'raw' }) as const;

function makeOne(before: () => Promise<void> = async () => {}) {
  const prepared: string[] = [];
  const inspector = makeInspector({
    clock: systemClock,
    uidFor: async () => LOOK_UID,
    scratchFolder: join(folder, 'looks'),
    prepare: async (vm, image): Promise<DiskImage> => {
      prepared.push(`${vm}/${image.id}`);
      await before();
      return { path: image.path, format: image.format };
    },
  });
  return { inspector, prepared };
}

const of = (...disks: VmDisks['disks']): VmDisks => ({ vm: WEB, disks });

test('two who ask for one VM at once share one look; a later one looks again [A3]', async () => {
  const { inspector, prepared } = makeOne();
  const [first, second] = await Promise.all([
    inspector.inspect(of(disk('root', path)), never),
    inspector.inspect(of(disk('root', path)), never),
  ]);
  assert.equal(first, second);
  assert.deepEqual(prepared, ['web/root']);
  await inspector.inspect(of(disk('root', path)), never);
  assert.deepEqual(prepared, ['web/root', 'web/root']);
});

test('a system that lies on the second disk is found there; with none, the first disk says why not', async () => {
  const { inspector } = makeOne();
  const report = await inspector.inspect(of(disk('data', empty), disk('root', path)), never);
  assert.equal(report.disk, 'root');
  await assert.rejects(inspector.inspect(of(disk('data', empty)), never), /ext4 without a system on it/);
  await assert.rejects(inspector.inspect(of(), never), /has no disk/);
});

test('a VM that starts waits for no look: it is left, and nobody has the disk open then [A3]', async () => {
  const { inspector } = makeOne();
  const large = await makeExt4({
    folder,
    name: 'large.raw',
    tree: { ...DEBIAN_TREE, 'var/lib/dpkg/status': '\n'.repeat(40e6) },
    sizeMiB: 64,
  });
  const looking = inspector.inspect(of(disk('root', large)), never);
  const ended = assert.rejects(looking, { code: 'conflict/inspect-left' });
  while (!(await isOpen(large))) await systemClock.sleep(2);
  await inspector.leave(WEB);
  assert.equal(await isOpen(large), false);
  await ended;
  await inspector.leave(WEB); // Nothing is under way: nothing to wait for.
});

test('few looks run at once; one that waits for its turn is left at once', async () => {
  let go = (): void => {};
  const gate = new Promise<void>((resolve) => {
    go = resolve;
  });
  const { inspector, prepared } = makeOne(() => gate);
  const names = ['a', 'b', 'c', 'd'].map((name) => name as VmId); // Letters are a VM's name.
  const looks = names.map((vm) => inspector.inspect({ vm, disks: [disk('root', path)] }, never));
  const left = assert.rejects(looks[2] ?? Promise.resolve(), { code: 'conflict/inspect-left' });
  await systemClock.sleep(20);
  assert.deepEqual(prepared, ['a/root', 'b/root']);
  await inspector.leave(names[2] ?? WEB);
  await left;
  go();
  const others = await Promise.all([looks[0], looks[1], looks[3]]);
  assert.deepEqual(
    others.map((report) => report?.disk),
    ['root', 'root', 'root'],
  );
  assert.deepEqual(prepared, ['a/root', 'b/root', 'd/root']);
});

test('whoever gives up ends the look, unless another one waits for it', async () => {
  let go = (): void => {};
  const gate = new Promise<void>((resolve) => {
    go = resolve;
  });
  const { inspector } = makeOne(() => gate);
  const giving = new AbortController();
  const one = inspector.inspect(of(disk('root', path)), giving.signal);
  const other = inspector.inspect(of(disk('root', path)), never);
  giving.abort(new Error('given up'));
  go();
  assert.equal((await other).disk, 'root');
  await one;
  const alone = new AbortController();
  const third = inspector.inspect(of(disk('root', path)), alone.signal);
  alone.abort(new Error('given up'));
  await assert.rejects(third, /given up/);
});

test('a look that failed leaves nothing behind that the next one would meet', async () => {
  const { inspector } = makeOne();
  await patch(empty, 1024 + 0x38, Buffer.from([0, 0]));
  await assert.rejects(inspector.inspect(of(disk('data', empty)), never), /nothing we know/);
  assert.equal((await inspector.inspect(of(disk('root', path)), never)).disk, 'root');
});

/** Whether a process has the image mounted or open, in whatever namespace. */
async function isOpen(image: string): Promise<boolean> {
  for (const pid of await readdir('/proc')) {
    const program = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (!program.startsWith('qemu-storage-daemon\0')) continue;
    const mounts = await readFile(`/proc/${pid}/mountinfo`, 'utf8').catch(() => '');
    if (mounts.includes(image)) return true;
  }
  return false;
}
