// Disks of running VMs, as a hypervisor shows them: a real NBD export, a journal that is not yet in its place, and files that an
// update should have brought.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, chown, copyFile, mkdir, open, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import {
  DEBIAN_TREE,
  LOOK_UID,
  makeExt4,
  makeImageFolder,
  makePartitioned,
  OS_RELEASE,
  patch,
} from '../../test/fakes/disk-images.ts';
import { systemClock } from '../base/clock.ts';
import { digestOf } from '../base/digest.ts';
import { VERIFY_FILE_BYTES_MAX } from '../base/limits.ts';
import { runCommand } from '../base/run-command.ts';
import { waitUntil } from '../base/wait-until.ts';
import type { VmId } from '../model/ids.ts';
import { checkFiles, wrongFilesText } from './check-files.ts';
import { claimDifference } from './difference.ts';
import type { ExpectedFile } from './expected-files.ts';
import { makeInspector } from './inspector.ts';

const WEB = 'web' as VmId; // Letters are a VM's name.
const EXPORT = 'shown';
const never = new AbortController().signal;
let folder: string;
let plain: string;
const daemons: ChildProcess[] = [];

before(async () => {
  folder = await makeImageFolder();
  plain = await makeExt4({ folder, name: 'plain.raw', tree: DEBIAN_TREE, sizeMiB: 16 });
});
after(async () => {
  for (const daemon of daemons) daemon.kill('SIGKILL');
  await rm(folder, { recursive: true });
});

let shown = 0;
/** Shows a raw image over NBD, as the hypervisor of a VM would. */
async function show(path: string) {
  shown += 1;
  const socketFolder = join(folder, `nbd${shown}`);
  const socket = join(socketFolder, 'nbd');
  await mkdir(socketFolder);
  const node = JSON.stringify({
    driver: 'raw',
    'node-name': 'n',
    'read-only': true,
    file: { driver: 'file', filename: path },
  });
  const server = `addr.type=unix,addr.path=${socket}`;
  const daemon = spawn(
    'qemu-storage-daemon',
    ['--blockdev', node, '--nbd-server', server, '--export', `type=nbd,id=e,node-name=n,name=${EXPORT}`],
    { stdio: 'ignore' },
  );
  daemons.push(daemon);
  const isThere = () => stat(socket).then(Boolean, () => false);
  assert(await waitUntil(isThere, systemClock, 5_000));
  if (LOOK_UID !== null) for (const each of [socketFolder, socket]) await chown(each, LOOK_UID, LOOK_UID);
  await chmod(socketFolder, 0o700);
  return { socket, exportName: EXPORT, close: async () => void daemon.kill('SIGKILL') };
}

const inspector = () =>
  makeInspector({
    clock: systemClock,
    uidFor: async () => LOOK_UID,
    prepare: () => assert.fail('it runs'),
    scratchFolder: join(folder, 'looks'),
  });

const lookAt = async (path: string, files: readonly ExpectedFile[] = []) =>
  await inspector().inspectRunning(
    { vm: WEB, disks: ['root'], show: () => show(path) },
    (disk) => checkFiles(disk, [{ item: 'debian/jq', files }]),
    never,
  );

/** Puts a change of one block into the journal only: what a power cut after a guest's fsync finds. */
async function journaled(path: string, from: string, to: string): Promise<void> {
  const blockSize = Number(/Block size:\s+(\d+)/.exec(await runCommand(['dumpe2fs', '-h', path]))?.[1]);
  const blocks = (await runCommand(['debugfs', '-R', 'blocks /var/lib/dpkg/status', path]))
    .trim()
    .split(/\s+/)
    .map(Number);
  for (const block of blocks) {
    const content = await readBytes(path, block * blockSize, blockSize);
    const found = content.indexOf(from);
    if (found < 0) continue;
    content.write(to, found);
    const source = `${path}.block`;
    await writeFile(source, content);
    await runCommand(['debugfs', '-w', '-f', '-', path], { input: `jo\njw -b ${block} ${source}\njc\n` });
    return;
  }
  assert.fail(`${from} is not in the file`);
}

async function readBytes(path: string, offsetBytes: number, sizeBytes: number): Promise<Buffer> {
  const file = await open(path, 'r');
  try {
    return (await file.read(Buffer.alloc(sizeBytes), 0, sizeBytes, offsetBytes)).buffer;
  } finally {
    await file.close();
  }
}

const versionOf = (report: Awaited<ReturnType<typeof lookAt>>) =>
  report.inventory.products.find(({ product }) => product === 'jq')?.version;

test('what is only in the journal counts, on a whole disk and in a partition, and the disk itself is not written [A3]', async () => {
  const whole = join(folder, 'dirty.raw');
  await copyFile(plain, whole);
  await journaled(whole, '1.6-2.1', '1.6-2.9');
  const parted = await makePartitioned(folder, 'parted.raw', 24, 'label: gpt\nstart=2048, size=32768\n');
  await patch(parted, 1024 * 1024, await readFile(whole));
  for (const path of [whole, parted]) {
    const before = digestOf(await readFile(path));
    const report = await lookAt(path);
    assert.equal(versionOf(report), '1.6-2.9', path);
    assert(!report.notes.some((note) => /journal/.test(note)), 'nothing is missing in this reading');
    assert.equal(digestOf(await readFile(path)), before);
  }
  assert.equal(versionOf(await lookAt(plain)), '1.6-2.1', 'positive control: without the journal it is another');
  assert.deepEqual(await readdir(join(folder, 'looks')), []);
});

test('a journal that lies far behind on a large disk is replayed as well [A3]', async () => {
  const path = await makeExt4({ folder, name: 'large.raw', tree: DEBIAN_TREE, sizeMiB: 3000 });
  await journaled(path, '1.6-2.1', '1.6-2.9');
  assert.equal(versionOf(await lookAt(path)), '1.6-2.9');
});

test('a disk that holds nothing we can read is an error that names it [A3]', async () => {
  const luks = join(folder, 'luks.raw');
  await writeFile(luks, Buffer.concat([Buffer.from('LUKS\xba\xbe', 'latin1'), Buffer.alloc(1024 * 1024)]));
  await assert.rejects(lookAt(luks), { code: 'refused/cannot-look', message: /the disk root of web.*LUKS/ });
  assert.deepEqual(await readdir(join(folder, 'looks')), []);
});

const file = (path: string, content: string): ExpectedFile => ({
  path,
  algorithm: 'md5',
  digest: createHash('md5').update(content).digest('hex'),
});

test('files of an update are looked for by name and content, where packages really put them [A10]', async () => {
  const tree = {
    'usr/lib/os-release': OS_RELEASE,
    'etc/os-release': '-> ../usr/lib/os-release',
    'var/lib/dpkg/status': '',
    'usr/bin/jq': 'new jq',
    bin: '-> usr/bin',
    'usr/bin/old': 'old content',
    'usr/bin/alternative': '-> ../lib/real',
    'usr/lib/real': 'real',
    'usr/lib/taken.distrib': 'taken',
    'usr/lib/taken': 'of another package',
    'var/lib/dpkg/diversions': '/usr/lib/taken\n/usr/lib/taken.distrib\nother\n',
    'usr/lib/folder/x': 'x',
  };
  const path = await makeExt4({ folder, name: 'files.raw', tree, sizeMiB: 8 });
  const right = [
    file('/usr/bin/jq', 'new jq'),
    file('/bin/jq', 'new jq'),
    file('/usr/bin/alternative', 'real'),
    file('/usr/lib/taken', 'taken'),
    file('/usr/share/doc/jq/copyright', 'left out of small systems'),
    file('/usr/share/odd "name"', 'not asked for'),
  ];
  const agreed = (await lookAt(path, right)).files;
  assert.deepEqual(agreed, { matching: 4, unread: 1, wrong: 0, first: [] });
  const wrong = [file('/usr/bin/old', 'new content'), file('/usr/bin/gone', 'x'), file('/usr/lib/folder', 'x')];
  const caught = (await lookAt(path, [...right, ...wrong])).files;
  assert.equal(caught.wrong, 3);
  const text = wrongFilesText(caught) ?? '';
  for (const words of [/bin\/old holds something else/, /bin\/gone is not there/, /lib\/folder is not there/])
    assert.match(text, words);
});

test('a file that its guest makes too large to be read, or diverts to a name that is not asked for, is not right for that [A10]', async () => {
  const tree = {
    'etc/os-release': OS_RELEASE,
    'usr/bin/padded': 'old program',
    'usr/bin/large': 'a large program',
    'usr/bin/hidden': 'old program',
    'var/lib/dpkg/diversions': '/usr/bin/hidden\n/usr/bin/"hidden"\nother\n',
  };
  const path = await makeExt4({ folder, name: 'padded.raw', tree, sizeMiB: 8 });
  const large = 2 * VERIFY_FILE_BYTES_MAX;
  for (const name of ['padded', 'large'])
    await runCommand(['debugfs', '-w', '-R', `sif /usr/bin/${name} size ${large}`, path]);
  const all = ['padded', 'large', 'hidden'].map((name) => file(`/usr/bin/${name}`, 'new program'));
  const sizes = async () =>
    new Map([
      ['/usr/bin/padded', 11],
      ['/usr/bin/large', large],
    ]);
  const { files } = await inspector().inspectRunning(
    { vm: WEB, disks: ['root'], show: () => show(path) },
    (disk) => checkFiles(disk, [{ item: 'debian/jq', files: all, sizes }]),
    never,
  );
  assert.deepEqual([files.matching, files.unread, files.wrong], [0, 1, 2]);
  assert.match(wrongFilesText(files) ?? '', /bin\/hidden holds something else.*bin\/padded has another size/);
});

test('thousands of files are looked for in parts, and none is taken for missing [A10]', async () => {
  const names = Array.from({ length: 1200 }, (_, index) => `opt/many/file-${index}`);
  const tree = Object.fromEntries(names.map((name) => [name, name]));
  const path = await makeExt4({
    folder,
    name: 'many.raw',
    tree: { ...tree, 'etc/os-release': OS_RELEASE },
    sizeMiB: 32,
  });
  const expected = names.map((name) => file(`/${name}`, name));
  assert.deepEqual((await lookAt(path, expected)).files, { matching: 1200, unread: 0, wrong: 0, first: [] });
});

test('a claim is held against the disk in both directions: what it adds, and what it keeps back [A10]', async () => {
  const { inventory } = await lookAt(plain);
  assert.equal(claimDifference(inventory, { ...inventory, agent: { version: '9', digest: null } }), null);
  const jq = inventory.products.filter(({ product }) => product !== 'jq');
  assert.match(claimDifference(inventory, { ...inventory, products: jq }) ?? '', /1 product missing: debian\/jq/);
  const products = inventory.products.map((one) => ({ ...one, version: '99' }));
  assert.match(claimDifference(inventory, { ...inventory, products }) ?? '', /changed.*jq:amd64 1\.6-2\.1 -> 99/);
  const os = { ...inventory.os, versionId: '13' };
  assert.match(claimDifference(inventory, { ...inventory, os }) ?? '', /os debian 12 amd64 -> debian 13 amd64/);
});
