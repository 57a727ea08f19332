// What Debian's own cloud-init thinks of the seeds that the host renders: its package unpacked, never installed on this machine.
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fetchPackage, unpackPackage } from '../../images/debian-package.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import { type NoCloudFiles, renderNoCloud } from '../../src/guest-config/nocloud.ts';
import type { GuestConfigItem } from '../../src/model/guest-config.ts';

/** One item of every kind, with everything that one may have. */
const ITEMS: readonly GuestConfigItem[] = [
  { item: 'name', version: 'v1', setting: { kind: 'hostname', hostname: 'web1.example.org' } },
  {
    item: 'admins',
    version: 'v1',
    setting: { kind: 'ssh-keys', user: 'root', keys: ['ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHuR6YzL2Jx2cZVjO6Xo ann'] },
  },
  {
    item: 'app',
    version: 'v1',
    setting: {
      kind: 'product',
      product: 'app',
      files: [
        { path: '/etc/app.conf', content: 'a: "b"\n', mode: '0640', owner: 'root', group: 'adm' },
        { path: '/etc/app.key', content: 'AAE=', encoding: 'base64', mode: '0600' },
      ],
    },
    apply: [{ restart: 'app.service' }, { reload: 'nginx.service' }, { reboot: true }],
  },
  {
    item: 'lan',
    version: 'v1',
    setting: {
      kind: 'network',
      interfaces: [
        {
          mac: '52:54:00:00:00:01',
          addresses: ['192.0.2.10/24', '2001:db8::10/64'],
          gateway4: '192.0.2.1',
          gateway6: '2001:db8::1',
          dns: ['192.0.2.53'],
          search: ['example.org'],
          mtu: 1400,
        },
        { mac: '52:54:00:00:00:02', dhcp4: true, dhcp6: true },
      ],
    },
  },
];

type CloudInit = { readonly folder: string; readonly env: NodeJS.ProcessEnv };

async function unpackCloudInit(t: TestContext): Promise<CloudInit> {
  const folder = await mkdtemp(join(tmpdir(), 'cloud-init-'));
  t.after(() => rm(folder, { recursive: true }));
  const found = await fetchPackage({ name: 'cloud-init', cacheFolder: defaultCacheFolder(), log: silentLog });
  t.diagnostic(`cloud-init ${found.version}`);
  await unpackPackage(found, join(folder, 'root'));
  const env = { PATH: process.env.PATH, PYTHONPATH: join(folder, 'root/usr/lib/python3/dist-packages') };
  return { folder, env: { ...env, PYTHONDONTWRITEBYTECODE: '1' } };
}

function rendered(): Required<NoCloudFiles> {
  const files = renderNoCloud({ vm: 'web1', items: ITEMS });
  assert.ok(files?.networkConfig !== undefined);
  return { ...files, networkConfig: files.networkConfig };
}

test("cloud-init's schema has nothing against what it is told [A14]", async (t) => {
  const { folder, env } = await unpackCloudInit(t);
  const check = async (userData: string) => {
    const path = join(folder, 'user-data');
    await writeFile(path, userData);
    const argv = ['/usr/bin/python3', '-m', 'cloudinit.cmd.main', 'schema', '--config-file', path];
    const { exitCode, stdout, stderr } = await tryCommand(argv, { purpose: 'asking cloud-init for its schema', env });
    return { exitCode, output: stdout + stderr };
  };
  const { userData } = rendered();
  const { exitCode, output } = await check(userData);
  assert.equal(exitCode, 0, output);
  assert.match(output, /Valid cloud-config/);
  assert.doesNotMatch(output, /deprecat|warning/i);
  // One item alone leaves lists that have nothing in them.
  for (const item of ITEMS) {
    const alone = await check(renderNoCloud({ vm: 'web1', items: [item] })?.userData ?? '');
    assert.equal(alone.exitCode, 0, `${item.item}: ${alone.output}`);
  }
  // The control: it does look.
  const bad = await check(userData.replace('"runcmd": [', '"runcmd": [ 5,'));
  assert.notEqual(bad.exitCode, 0);
  assert.match(bad.output, /runcmd.0: 5 is not valid/);
});

test('cloud-init reads the network as it is meant, also for systemd-networkd [A14]', async (t) => {
  const { folder, env } = await unpackCloudInit(t);
  const path = join(folder, 'network-config');
  await writeFile(path, rendered().networkConfig);
  const convert = ['/usr/bin/python3', '-m', 'cloudinit.cmd.devel.net_convert', '-p', path, '-k', 'yaml'];
  const argv = [...convert, '-d', join(folder, 'out'), '-D', 'debian', '-O', 'networkd'];
  await runCommand(argv, { purpose: 'asking cloud-init for the network', env });
  const units = join(folder, 'out/etc/systemd/network');
  const texts = await Promise.all((await readdir(units)).sort().map((name) => readFile(join(units, name), 'utf8')));
  const [first = '', second = ''] = texts;
  for (const line of [
    'MACAddress=52:54:00:00:00:01',
    'Address=192.0.2.10/24',
    'Address=2001:db8::10/64',
    'Gateway=192.0.2.1',
    'Gateway=2001:db8::1',
    'DNS=192.0.2.53',
    'Domains=example.org',
    'MTUBytes=1400',
    'DHCP=no',
  ]) {
    assert.ok(first.split('\n').includes(line), `${line} in ${first}`);
  }
  assert.match(second, /MACAddress=52:54:00:00:00:02/);
  assert.match(second, /DHCP=yes/);
});
