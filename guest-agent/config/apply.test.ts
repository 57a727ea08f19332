// Configuration in a guest: applied as one set, rolled back as one, and never written where it must not be.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  renameSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import type { GuestConfigItem } from '../../src/model/guest-config.ts';
import { apply, fileItem, furnish, offerConfig, plan, read, write } from '../../test/fakes/guest-agent/fake-config.ts';
import { FakeGuest } from '../../test/fakes/guest-agent/fake-guest.ts';
import { PLAN, RUN } from '../../test/fakes/guest-agent/fake-host.ts';
import { nodePlatform } from '../platform/node.ts';
import { SystemError } from '../platform/platform.ts';

let guest: FakeGuest;
beforeEach(async () => {
  guest = new FakeGuest();
  furnish(guest);
  await guest.started();
});
afterEach(() => guest.remove());

const NAME: GuestConfigItem = {
  item: 'name',
  version: '1',
  setting: { kind: 'hostname', hostname: 'web-1.example.org' },
};

const applied = async () =>
  (await guest.inventory()).config.map(({ item, version, state }) =>
    [item, version, ...(state ? [state] : [])].join(' '),
  );
const mode = (path: string) => (statSync(join(guest.folder, path)).mode & 0o7777).toString(8);
/** The agent again, on what is overridden by now. */
async function restarted(): Promise<void> {
  guest.cutPower();
  guest.newBoot();
  await guest.started();
}
/** Everything below a folder that configuration could have left behind. */
const names = (path: string) => readdirSync(join(guest.folder, path)).sort();

/** A script of /etc/init.d that notes its calls and what the file says at that moment, and fails where told. */
function service(name: string, file: string, exit = 'exit 0'): void {
  const note = join(guest.folder, 'calls');
  const path = join(guest.folder, `etc/init.d/${name}`);
  write(
    guest,
    `etc/init.d/${name}`,
    `#!/bin/sh\necho "$1 $(cat ${join(guest.folder, file)} 2>/dev/null)" >>${note}\n${exit}\n`,
  );
  chmodSync(path, 0o755);
}

test('software and configuration come in one run, and both are reported [A10 A13]', async () => {
  guest.seedApp('1.0.0');
  const items = [NAME, fileItem('motd', '/etc/motd', 'hello\n')];
  assert.deepEqual(await apply(guest, { items, software: [guest.app('2.0.0')] }), [
    'bundle/app installed',
    'config/name installed',
    'config/motd installed',
  ]);
  assert.equal(read(guest, 'etc/hostname'), 'web-1\n');
  assert.equal(read(guest, 'etc/hosts'), '127.0.0.1 localhost\n127.0.1.1\tweb-1.example.org web-1\n');
  assert.equal(read(guest, 'proc/sys/kernel/hostname'), 'web-1\n');
  assert.equal(read(guest, 'etc/motd'), 'hello\n');
  assert.deepEqual(await applied(), ['name 1', 'motd 1']);
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest: null });
  const { results } = await guest.host.take('confirm');
  assert.deepEqual(
    results.map(({ item }) => item),
    ['bundle/app', 'config/name', 'config/motd'],
  );
});

test('a file has the mode, owner and bytes that are configured, and its folders are made [A14]', async () => {
  const bytes = Buffer.from([0, 255, 10, 128]);
  const file = {
    path: '/opt/shop/etc/key',
    content: bytes.toString('base64'),
    encoding: 'base64',
    mode: '0640',
    owner: 'ops',
  } as const;
  const item: GuestConfigItem = { item: 'key', version: '1', setting: { kind: 'file', file } };
  assert.deepEqual(await apply(guest, { items: [item] }), ['config/key installed']);
  assert.deepEqual(Buffer.from(read(guest, 'opt/shop/etc/key') ?? ''), Buffer.from(bytes.toString('utf8')));
  assert.equal(mode('opt/shop/etc/key'), '640');
  assert.equal(mode('opt/shop/etc'), '755');
});

test("a user's keys are put beside the user's own, and replaced by the next ones [A14]", async () => {
  write(guest, 'home/ops/.ssh/authorized_keys', 'ssh-ed25519 OWN ops\n');
  const keys = (version: string, ...list: string[]): GuestConfigItem => ({
    item: 'ops-keys',
    version,
    setting: { kind: 'ssh-keys', user: 'ops', keys: list },
  });
  await apply(guest, { items: [keys('1', 'ssh-ed25519 AAAAC3Nza one')] });
  await apply(guest, { items: [keys('2', 'ssh-ed25519 AAAAC3Nza two', 'ssh-rsa AAAAB3Nza three')], plan: plan('3') });
  const text = read(guest, 'home/ops/.ssh/authorized_keys') ?? '';
  assert.match(
    text,
    /^ssh-ed25519 OWN ops\n# pratique ops-keys: begin\nssh-ed25519 AAAAC3Nza two\nssh-rsa AAAAB3Nza three\n/,
  );
  assert.doesNotMatch(text, / one/);
  assert.equal(mode('home/ops/.ssh/authorized_keys'), '600');
  assert.deepEqual(await apply(guest, { removed: ['ops-keys'], plan: plan('4') }), ['config/ops-keys installed']);
  assert.equal(read(guest, 'home/ops/.ssh/authorized_keys'), 'ssh-ed25519 OWN ops\n');
  assert.deepEqual(await applied(), []);
});

test('what is configured no longer goes if it was not there before, and stays if it was [A14]', async () => {
  write(guest, 'etc/motd', 'the guest own\n');
  await apply(guest, { items: [fileItem('motd', '/etc/motd', 'ours\n'), fileItem('new', '/etc/new.conf', 'ours\n')] });
  await apply(guest, { removed: ['motd', 'new'], plan: plan('3') });
  assert.equal(read(guest, 'etc/motd'), 'ours\n');
  assert.equal(read(guest, 'etc/new.conf'), null);
});

test("a product's file that its next version does not have any more is taken away", async () => {
  const product = (version: string, ...paths: string[]): GuestConfigItem => ({
    item: 'shop',
    version,
    setting: { kind: 'product', product: 'shop', files: paths.map((path) => ({ path, content: version })) },
  });
  await apply(guest, { items: [product('1', '/etc/shop/a', '/etc/shop/b')] });
  assert.deepEqual(await apply(guest, { items: [product('2', '/etc/shop/b', '/etc/shop/c')], plan: plan('3') }), [
    'config/shop installed',
  ]);
  assert.deepEqual(names('etc/shop'), ['b', 'c']);
  assert.deepEqual(await applied(), ['shop 2']);
});

test('what somebody changes in the guest is reported as changed [A6]', async () => {
  await apply(guest, { items: [fileItem('motd', '/etc/motd', 'ours\n'), fileItem('other', '/etc/other', 'ours\n')] });
  write(guest, 'etc/motd', 'not ours\n');
  assert.deepEqual(await applied(), ['motd 1 changed', 'other 1']);
  write(guest, 'etc/motd', 'ours\n');
  assert.deepEqual(await applied(), ['motd 1', 'other 1']);
  chmodSync(join(guest.folder, 'etc/other'), 0o666);
  assert.deepEqual(await applied(), ['motd 1', 'other 1 changed']);
});

test('what was applied is in what the agent recorded at the last shutdown [A6]', async () => {
  await apply(guest, { items: [fileItem('motd', '/etc/motd', 'ours\n')] });
  guest.terminate();
  await guest.host.take('bye');
  guest.cutPower();
  guest.newBoot();
  await guest.started();
  assert.deepEqual((await guest.inventory()).lastShutdown?.config, [{ item: 'motd', version: '1' }]);
});

test('one item that cannot be applied takes the whole set back: contents, modes, absences, names [A10]', async () => {
  write(guest, 'etc/motd', 'before\n');
  chmodSync(join(guest.folder, 'etc/motd'), 0o604);
  symlinkSync('motd', join(guest.folder, 'etc/link'));
  service('shop', 'etc/motd', 'case "$(cat $0.ok 2>/dev/null)" in yes) exit 0 ;; esac; exit 3');
  const items = [
    NAME,
    fileItem('motd', '/etc/motd', 'after\n', { apply: [{ restart: 'shop.service' }] }),
    fileItem('link', '/etc/link', 'a file now\n'),
    fileItem('deep', '/opt/a/b/c', 'new\n'),
  ];
  assert.deepEqual(await apply(guest, { items }), [
    'config/motd failed apply-failed',
    'config/name skipped set-rolled-back',
    'config/link skipped set-rolled-back',
    'config/deep skipped set-rolled-back',
  ]);
  assert.equal(read(guest, 'etc/motd'), 'before\n');
  assert.equal(mode('etc/motd'), '604');
  assert.ok(lstatSync(join(guest.folder, 'etc/link')).isSymbolicLink());
  assert.equal(existsSync(join(guest.folder, 'opt/a')), false);
  assert.equal(read(guest, 'etc/hostname'), 'before\n');
  assert.equal(read(guest, 'proc/sys/kernel/hostname'), 'before\n');
  assert.equal(
    read(guest, 'calls'),
    'restart after\nrestart before\n',
    'the service is restarted with the old file, too',
  );
  assert.deepEqual(await applied(), []);
  assert.deepEqual(names('state/config'), []);
});

test('a health check that does not pass takes the set back [A10]', async () => {
  service('shop', 'etc/motd', 'test "$1" != status');
  const items = [fileItem('motd', '/etc/motd', 'after\n', { health: ['service:shop'] })];
  assert.deepEqual(await apply(guest, { items }), ['config/motd failed health-failed']);
  assert.equal(read(guest, 'etc/motd'), null);
  service('shop', 'etc/motd');
  assert.deepEqual(await apply(guest, { items, plan: plan('3') }), ['config/motd installed']);
});

test('an item that takes effect with a reboot asks for one', async () => {
  offerConfig(guest, { items: [fileItem('modules', '/etc/modules', 'x\n', { apply: [{ reboot: true }] })] });
  const { rebootRequired } = await guest.host.take('installed');
  assert.equal(rebootRequired, true);
});

test('the same step is done once, and units are not started for software that failed [A13]', async () => {
  service('shop', 'etc/a');
  const step = { apply: [{ restart: 'shop' }] };
  await apply(guest, { items: [fileItem('a', '/etc/a', 'A', step), fileItem('b', '/etc/b', 'B', step)] });
  assert.equal(read(guest, 'calls'), 'restart A\n');
  const software = [guest.app('2.0.0', { check: '#!/bin/sh\nexit 1\n' })];
  assert.deepEqual(await apply(guest, { items: [fileItem('a', '/etc/a', 'C', step)], software, plan: plan('3') }), [
    'bundle/app failed check-failed',
    'config/a skipped earlier-failed',
  ]);
  assert.equal(read(guest, 'etc/a'), 'A');
});

test('previous contents are root only while they are kept, and go with the admission', async () => {
  write(guest, 'etc/motd', 'an old secret\n');
  await apply(guest, { items: [fileItem('motd', '/etc/motd', 'a new secret\n')] });
  assert.equal(mode('state/config/previous/0'), '600');
  guest.host.send({ type: 'admitted', run: RUN });
  await guest.host.settle();
  assert.deepEqual(names('state/config'), ['applied.json']);
  assert.doesNotMatch(read(guest, 'state/config/applied.json') ?? '', /secret/);
  assert.doesNotMatch(read(guest, 'state/run.json') ?? '', /secret/);
});

// ---- Hostile and unlucky ---------------------------------------------------------------------------------------------

test('nothing is written through a link that a user of the guest could have made', async () => {
  mkdirSync(join(guest.folder, 'elsewhere'));
  chmodSync(join(guest.folder, 'home/ops'), 0o777); // Not root's alone: whoever may write there may have made the link.
  symlinkSync(join('..', '..', 'elsewhere'), join(guest.folder, 'home/ops/.ssh'));
  const item: GuestConfigItem = {
    item: 'keys',
    version: '1',
    setting: { kind: 'ssh-keys', user: 'ops', keys: ['ssh-ed25519 AAAAC3Nza one'] },
  };
  assert.deepEqual(await apply(guest, { items: [item] }), ['config/keys failed path-link']);
  assert.deepEqual(names('elsewhere'), []);
  // The system's own links are ways like any other.
  mkdirSync(join(guest.folder, 'var'));
  symlinkSync('/elsewhere', join(guest.folder, 'var/conf'));
  assert.deepEqual(await apply(guest, { items: [fileItem('conf', '/var/conf/a', 'x')], plan: plan('3') }), [
    'config/conf installed',
  ]);
  assert.deepEqual(names('elsewhere'), ['a']);
});

test('a link at the place itself is replaced, never followed', async () => {
  write(guest, 'etc/target', 'stays\n');
  symlinkSync('target', join(guest.folder, 'etc/link'));
  assert.deepEqual(await apply(guest, { items: [fileItem('link', '/etc/link', 'ours\n')] }), ['config/link installed']);
  assert.equal(read(guest, 'etc/target'), 'stays\n');
  assert.equal(lstatSync(join(guest.folder, 'etc/link')).isFile(), true);
});

test('a place that is ours, a folder, below a file, or in a circle of links is refused', async () => {
  write(guest, 'etc/file', 'x');
  symlinkSync('circle', join(guest.folder, 'etc/circle'));
  const refused = async (path: string, digit: string) => {
    const [line] = await apply(guest, { items: [fileItem('x', path, 'y')], plan: plan(digit) });
    return line;
  };
  assert.equal(await refused('/etc/file/below', '3'), 'config/x failed path-not-folder');
  assert.equal(await refused('/etc', '4'), 'config/x failed path-is-folder');
  assert.equal(await refused('/etc/circle/x', '5'), 'config/x failed path-link');
  assert.equal(await refused('/state/config/applied.json', '6'), 'config/x failed path-protected');
  assert.equal(await refused('/proc/sys/kernel/hostname', '7'), 'config/x failed path-protected');
  assert.equal(await refused('/bin/self', '8'), 'config/x failed path-protected');
  assert.equal(await refused('/etc/systemd/system/pratique-agent.service', '9'), 'config/x failed path-protected');
  assert.deepEqual(await applied(), []);
});

test('a file of the drive that is another item, for another VM, or no configuration at all changes nothing', async () => {
  const items = [fileItem('motd', '/etc/motd', 'x')];
  const tampered = async (digit: string, tamper: NonNullable<Parameters<typeof apply>[1]['tamper']>) =>
    await apply(guest, { items, plan: plan(digit), tamper });
  assert.deepEqual(await tampered('3', (file) => ({ ...file, vm: 'other' })), ['config/motd failed config-wrong-vm']);
  assert.deepEqual(await tampered('4', (file) => ({ ...file, item: { ...file.item, version: '2' } })), [
    'config/motd failed config-malformed',
  ]);
  const dotted = fileItem('motd', '/../etc/motd', 'x');
  assert.deepEqual(await tampered('5', (file) => ({ ...file, item: dotted })), ['config/motd failed config-malformed']);
  assert.deepEqual(await tampered('6', () => ({ run: 'rm -rf /' })), ['config/motd failed config-malformed']);
  assert.equal(read(guest, 'etc/motd'), null);
});

test('two items that want the same file are both refused, and so is one for a user that is not there', async () => {
  const twice = [fileItem('a', '/etc/motd', 'A'), fileItem('b', '/etc/motd', 'B')];
  assert.deepEqual(await apply(guest, { items: twice }), [
    'config/b failed path-twice',
    'config/a skipped set-rolled-back',
  ]);
  const file = { path: '/etc/motd', content: 'x', owner: 'nobody-here' };
  const items: GuestConfigItem[] = [{ item: 'a', version: '1', setting: { kind: 'file', file } }];
  assert.deepEqual(await apply(guest, { items, plan: plan('3') }), ['config/a failed no-user']);
});

test('files of a megabyte are written, and a disk that fills up in the middle leaves everything as before', async () => {
  const big = 'ä'.repeat(500_000);
  assert.deepEqual(await apply(guest, { items: [fileItem('big', '/etc/big', big)] }), ['config/big installed']);
  assert.equal(read(guest, 'etc/big'), big);
  guest.cutPower();
  guest.newBoot();
  const before = names('etc');
  const { files } = nodePlatform(systemClock);
  guest.overrides = {
    files: {
      ...files,
      create: (path, fileMode) => {
        if (path.endsWith('.pratique-config-1')) throw new SystemError('ENOSPC', `making ${path}`);
        return files.create(path, fileMode);
      },
    },
  };
  await guest.started();
  const items = [fileItem('one', '/etc/one', '1'), fileItem('two', '/etc/two', '2')];
  assert.deepEqual(await apply(guest, { items, plan: plan('3') }), [
    'config/two failed no-space',
    'config/one skipped set-rolled-back',
  ]);
  assert.deepEqual(names('etc'), before);
});

test('a failure says nothing of what was configured', async () => {
  const items = [fileItem('secret', '/etc/secret', 'hunter2', { apply: [{ restart: 'leaky' }] })];
  write(guest, 'etc/init.d/leaky', `#!/bin/sh\ncat ${join(guest.folder, 'etc/secret')}\nexit 1\n`);
  chmodSync(join(guest.folder, 'etc/init.d/leaky'), 0o755);
  await apply(guest, { items });
  assert.doesNotMatch(JSON.stringify(guest.host.messages) + guest.log.join('\n'), /hunter2/);
  assert.doesNotMatch(read(guest, 'state/run.json') ?? '', /hunter2/);
});

const KEYS: GuestConfigItem = {
  item: 'keys',
  version: '1',
  setting: { kind: 'ssh-keys', user: 'ops', keys: ['ssh-ed25519 AAAAC3Nza one'] },
};

test('a folder that its user puts a link in the place of, as soon as it is made, gives away no other folder', async () => {
  mkdirSync(join(guest.folder, 'elsewhere'), { mode: 0o755 });
  chmodSync(join(guest.folder, 'home/ops'), 0o777);
  const { files } = nodePlatform(systemClock);
  guest.overrides = {
    files: {
      ...files,
      makeFolder: (path, folderMode) => {
        files.makeFolder(path, folderMode);
        if (!path.endsWith('/.ssh')) return;
        renameSync(path, `${path}-aside`);
        symlinkSync('../../elsewhere', path);
      },
    },
  };
  await restarted();
  const [line] = await apply(guest, { items: [KEYS] });
  assert.match(line ?? '', /^config\/keys failed/);
  assert.equal(mode('elsewhere'), '755');
});

for (const [what, put] of [
  ['a link to what only root reads', (path: string) => symlinkSync('../../../etc/shadow', path)],
  ['a pipe', (path: string) => execFileSync('mkfifo', [`${realpathSync(dirname(path))}/authorized_keys`])],
] as const) {
  test(`a file that becomes ${what} between two looks is not read, and nobody waits for it`, async () => {
    write(guest, 'etc/shadow', 'root:hunter2\n');
    write(guest, 'home/ops/.ssh/authorized_keys', 'ssh-ed25519 OWN ops\n');
    const { files } = nodePlatform(systemClock);
    let looks = 0;
    guest.overrides = {
      files: {
        ...files,
        stat: (path) => {
          const found = files.stat(path);
          // Each of the looks at a file that is there may be the last one before it is read.
          if (path.endsWith('/authorized_keys') && found?.kind === 'file' && ++looks === 5) {
            files.remove(path);
            put(path);
          }
          return found;
        },
      },
    };
    await restarted();
    const [line] = await apply(guest, { items: [KEYS] });
    assert.match(line ?? '', /^config\/keys failed/);
    assert.ok(looks >= 5, `${looks} looks`);
    assert.doesNotMatch(JSON.stringify(names('home/ops/.ssh')), /pratique/);
    if (statSync(join(guest.folder, 'home/ops/.ssh/authorized_keys')).isFile())
      assert.doesNotMatch(read(guest, 'home/ops/.ssh/authorized_keys') ?? '', /AAAAC3Nza/);
  });
}

test("a file that its new owner could not read, a hard link into somebody else's, is not made the owner's", async () => {
  write(guest, 'home/ops/.ssh/authorized_keys', 'root:hunter2\n');
  const { files } = nodePlatform(systemClock);
  let access = { uid: 4711, mode: 0o640 };
  const isKeys = (path: string) => path.endsWith('/authorized_keys');
  const stat = (path: string) => {
    const found = files.stat(path);
    return found !== null && isKeys(path) ? { ...found, ...access } : found;
  };
  guest.overrides = { files: { ...files, stat } };
  await restarted();
  assert.deepEqual(await apply(guest, { items: [KEYS] }), ['config/keys failed path-link']);
  assert.equal(read(guest, 'home/ops/.ssh/authorized_keys'), 'root:hunter2\n');
  // What everybody reads, its new owner may have.
  access = { uid: 4711, mode: 0o644 };
  assert.deepEqual(await apply(guest, { items: [KEYS], plan: plan('3') }), ['config/keys installed']);
});

test('one place that cannot be put back keeps no other from it', async () => {
  write(guest, 'etc/one', 'old\n');
  write(guest, 'home/ops/d/two', 'old\n');
  chmodSync(join(guest.folder, 'home/ops'), 0o777);
  const at = join(guest.folder, 'home/ops/d');
  service('bad', 'etc/one', `/bin/rm -rf ${at}; /bin/ln -s /etc ${at}; exit 1`);
  const items = [
    fileItem('one', '/etc/one', 'new\n', { apply: [{ restart: 'bad' }] }),
    fileItem('two', '/home/ops/d/two', 'new\n'),
  ];
  assert.deepEqual(await apply(guest, { items }), [
    'config/one failed rollback-failed',
    'config/two skipped set-rolled-back',
  ]);
  assert.equal(read(guest, 'etc/one'), 'old\n');
  assert.equal(read(guest, 'etc/two'), null);
});

test('a disk that is full when the set is to count leaves everything as before, and says so', async () => {
  const { files } = nodePlatform(systemClock);
  guest.overrides = {
    files: {
      ...files,
      create: (path, fileMode) => {
        if (path.endsWith('/config/applied.json.new')) throw new SystemError('ENOSPC', `making ${path}`);
        return files.create(path, fileMode);
      },
    },
  };
  await restarted();
  assert.deepEqual(await apply(guest, { items: [fileItem('one', '/etc/one', 'new\n')] }), [
    'config/one failed no-space',
  ]);
  assert.equal(read(guest, 'etc/one'), null);
});

test('a set that is too large for the journal to be read again is refused before anything is written', async () => {
  const deep = (index: number) => `/opt/${index}${'/a'.repeat(480)}/x`;
  const files = Array.from({ length: 21 }, (_, index) => ({ path: deep(index), content: 'x' }));
  const item: GuestConfigItem = { item: 'deep', version: '1', setting: { kind: 'product', product: 'p', files } };
  assert.deepEqual(await apply(guest, { items: [item] }), ['config/deep failed too-large']);
  assert.equal(existsSync(join(guest.folder, 'opt/0')), false);
  assert.equal(existsSync(join(guest.folder, 'state/config/journal.json')), false);
});
