// Packages that do what Debian's packages do to an installer that nobody watches: ask, keep a file, restart services, replace the agent,
// break off; in a real Debian root, with the agent's executable and the guest's own apt and dpkg.
import assert from 'node:assert/strict';
import { access, cp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildAgent } from '../../guest-agent/build.ts';
import { waitUntil } from '../../proxy/demo/demo-network.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import type { DebianArchive, PackageSpec } from '../fakes/debian-archive.ts';
import { makeOffering } from './debian-offering.ts';
import type { Answer, DebianRoot } from './debian-root.ts';
import { type DebianScene, openDebianScene, SCENE_SUITE as SUITE } from './debian-scene.ts';

const SERVICE = `#!/bin/sh
# Starts only when the network is up, as a service that waits for network-online does.
case $1 in
  status) test -e /var/lib/waits.runs ;;
  stop) rm -f /var/lib/waits.runs ;;
  start | restart) until test -e /var/lib/network-is-up; do sleep 0.1; done; echo "$VERSION" >/var/lib/waits.runs ;;
esac
`;

let scene: DebianScene | null = null;
let scratch: string;
let archive: DebianArchive;
let vendor: Vendor;
let root: DebianRoot;
let published = 0;

before(async () => {
  scene = await openDebianScene();
  ({ scratch, archive, vendor, root } = scene);
  await root.start();
});
after(async () => await scene?.close());

/** Publishes the packages; a later call is a later state of the archive. */
async function publish(...packages: readonly PackageSpec[]): Promise<void> {
  published += 1;
  const date = new Date(systemClock.nowMs() - 3_600_000 + published * 60_000).toUTCString().replace('GMT', 'UTC');
  await archive.publish({ suite: SUITE, packages, date });
  await vendor.refresh({});
}

/** Puts packages into the guest as an admin did long ago, without the agent. */
async function seed(...packages: readonly PackageSpec[]): Promise<void> {
  await publish(...packages);
  for (const { name, version } of packages) {
    await cp(join(archive.folder, `pool/main/${name}_${version}_amd64.deb`), root.path('tmp/seed.deb'));
    await root.run('dpkg', '-i', '/tmp/seed.deb');
  }
}

async function offering(apt: 'fast' | 'vendor-verified' = 'fast') {
  root.host.send({ type: 'ask-inventory' });
  const { inventory } = await root.host.take('inventory', 60_000);
  return await makeOffering({ vendor, inventory, apt, folder: join(scratch, 'debs') });
}

async function update(apt?: 'fast' | 'vendor-verified'): Promise<Answer> {
  const { run, contents } = await root.writeDrive(await offering(apt));
  return await root.offer(run, contents.manifestDigest);
}

function assertInstalled(answer: Answer): void {
  assert.ok('installed' in answer, JSON.stringify(answer));
  for (const { item, outcome, output } of answer.installed.results)
    assert.equal(outcome, 'installed', `${item} ${output}`);
}

async function assertSound(): Promise<void> {
  assert.equal(await root.run('dpkg', '--audit'), '', 'dpkg has nothing to say');
  await assert.rejects(access(root.path('usr/sbin/policy-rc.d')), 'the guest decides again what starts');
}

test('a changed configuration file, a debconf question and a script that reads its input hold nobody up', async () => {
  const confmodule = '#!/bin/sh\nset -e\n. /usr/share/debconf/confmodule\n';
  const asking = (version: string): PackageSpec => ({
    name: 'asks',
    version,
    fields: { Depends: 'debconf' },
    files: {
      'etc/asks.conf': `the maintainer's ${version}\n`,
      'DEBIAN/conffiles': '/etc/asks.conf\n',
      'DEBIAN/templates': 'Template: asks/what\nType: string\nDescription: What?\n Nobody is there to answer.\n',
      'DEBIAN/config': `${confmodule}db_input critical asks/what || true\ndb_go || true\n`,
      'DEBIAN/postinst': `#!/bin/sh\nif [ -t 0 ] || [ -t 1 ]; then exit 7; fi\nif read -r word; then exit 8; fi\n`,
    },
  });
  await seed(asking('1'));
  await writeFile(root.path('etc/asks.conf'), "the admin's\n");
  await publish(asking('2'));
  assertInstalled(await update());
  assert.deepEqual(await root.versions('asks'), { asks: '2 installed' });
  assert.equal(await readFile(root.path('etc/asks.conf'), 'utf8'), "the admin's\n");
  await assertSound();
});

test('the agent stays under 2 MB resident while apt works, the vendor-verified way too [X7]', async (t) => {
  const slow = (version: string): PackageSpec => ({
    name: 'slow',
    version,
    files: { 'DEBIAN/postinst': '#!/bin/sh\nsleep 1.5\n' },
  });
  await seed(slow('1'));
  await publish(slow('2'));
  for (const apt of ['fast', 'vendor-verified'] as const) {
    let isDone = false;
    let mostKb = 0;
    const watch = (async () => {
      while (!isDone) {
        mostKb = Math.max(mostKb, await root.residentKb());
        await systemClock.sleep(20);
      }
    })();
    assertInstalled(await update(apt));
    isDone = true;
    await watch;
    t.diagnostic(`${apt}: ${mostKb} kB resident at most`);
    assert.ok(mostKb > 0 && mostKb < 2048, `${apt}: ${mostKb} kB`);
    await publish(slow('3'));
  }
});

test('a service that waits for the network is not waited for: it ends, and starts after the admission [A5 A10]', async () => {
  const waiting = (version: string): PackageSpec => ({
    name: 'waits',
    version,
    files: {
      'etc/init.d/waits': SERVICE.replace('$VERSION', version),
      'DEBIAN/postinst': '#!/bin/sh\nupdate-rc.d waits defaults\ninvoke-rc.d waits restart\n',
    },
  });
  // Without an init of its own this guest starts nothing unless its policy says so.
  await writeFile(root.path('usr/sbin/policy-rc.d'), '#!/bin/sh\nexit 0\n', { mode: 0o755 });
  await writeFile(root.path('var/lib/network-is-up'), '');
  await seed(waiting('1'));
  const runs = async (): Promise<string> => await readFile(root.path('var/lib/waits.runs'), 'utf8').catch(() => 'none');
  assert.equal(await runs(), '1\n', 'positive control: outside of a run it starts at once');
  await rm(root.path('var/lib/network-is-up'));
  await publish(waiting('2'));
  const { run, contents } = await root.writeDrive(await offering());
  assertInstalled(await root.offer(run, contents.manifestDigest));
  assert.equal(await runs(), 'none', 'what was replaced does not go on');
  root.host.send({ type: 'admitted', run });
  await writeFile(root.path('var/lib/network-is-up'), '');
  assert.ok(await waitUntil(systemClock, 15_000, async () => (await runs()) === '2\n'), await runs());

  // Plugged in already: it comes back without another word of the host.
  await publish(waiting('3'));
  assertInstalled(await update());
  assert.ok(await waitUntil(systemClock, 15_000, async () => (await runs()) === '3\n'), await runs());
  assert.match(await readFile(root.path('usr/sbin/policy-rc.d'), 'utf8'), /exit 0/, "the guest's own policy is back");
  await rm(root.path('usr/sbin/policy-rc.d'));
  await assertSound();
});

test('packages that do not fit are refused with the figures before anything is unpacked', async () => {
  const large: PackageSpec = { name: 'large', version: '1', fields: { 'Installed-Size': String(9_000_000_000) } };
  await seed({ name: 'large', version: '0' });
  await publish(large);
  const answer = await update();
  assert.ok('installed' in answer);
  const [result] = answer.installed.results;
  assert.deepEqual([result?.outcome, result?.code], ['failed', 'no-space']);
  assert.match(result?.output ?? '', /need 17578157\.\d MiB on the file system of \/usr, [\d.]+ MiB are free/);
  assert.deepEqual(await root.versions('large'), { large: '0 installed' });
});

for (const [phase, files] of [
  [
    'before it is unpacked',
    { 'DEBIAN/preinst': '#!/bin/sh\ntest -e /var/lib/once && exit 0\n: >/var/lib/once\nsleep 60\n' },
  ],
  [
    'while it is configured',
    { 'DEBIAN/postinst': '#!/bin/sh\ntest -e /var/lib/once && exit 0\n: >/var/lib/once\nsleep 60\n' },
  ],
] as const) {
  for (const apt of ['fast', 'vendor-verified'] as const) {
    test(`power lost in a package ${phase} (${apt}): the next boot goes on, and dpkg is whole [X4]`, async () => {
      await rm(root.path('var/lib/once'), { force: true });
      const version = `1.${published + 1}`;
      const cut: PackageSpec = { name: 'cut', version, files };
      const also: PackageSpec = { name: 'also', version, fields: { Depends: `cut (= ${version})` } };
      await seed({ name: 'cut', version: '0' }, { name: 'also', version: '0' });
      await publish(cut, also);
      const { run, contents } = await root.writeDrive(await offering(apt));
      const offer = { type: 'offer', run, label: 'PRATIQUE', manifestDigest: contents.manifestDigest } as const;
      root.host.send({ ...offer, planDigest: contents.manifest.planDigest });
      const isAsleep = () =>
        access(root.path('var/lib/once')).then(
          () => true,
          () => false,
        );
      assert.ok(await waitUntil(systemClock, 20_000, isAsleep), 'the package script runs');
      await root.cutPower();
      assert.notEqual(await root.run('dpkg', '--audit'), '', 'positive control: dpkg was broken off');
      await root.start();
      assertInstalled(await root.offer(run, contents.manifestDigest));
      assert.deepEqual(await root.versions('cut', 'also'), {
        cut: `${version} installed`,
        also: `${version} installed`,
      });
      await assertSound();
    });
  }
}

test('what was broken off is mended at the next boot even if nobody offers a drive [X4]', async () => {
  await rm(root.path('var/lib/once'), { force: true });
  const postinst = '#!/bin/sh\ntest -e /var/lib/once && exit 0\n: >/var/lib/once\nsleep 60\n';
  await seed({ name: 'alone', version: '0' });
  await publish({ name: 'alone', version: '1', files: { 'DEBIAN/postinst': postinst } });
  const { run, contents } = await root.writeDrive(await offering());
  const { manifestDigest, manifest } = contents;
  root.host.send({ type: 'offer', run, planDigest: manifest.planDigest, manifestDigest, label: 'PRATIQUE' });
  const isAsleep = () =>
    access(root.path('var/lib/once')).then(
      () => true,
      () => false,
    );
  assert.ok(await waitUntil(systemClock, 20_000, isAsleep));
  await root.cutPower();
  await root.start();
  root.host.send({ type: 'ask-inventory' });
  const { inventory } = await root.host.take('inventory', 60_000);
  const alone = inventory.products.find(({ product }) => product === 'alone');
  assert.deepEqual([alone?.version, alone?.state], ['1', 'installed'], 'the report waited for the repair');
  await assertSound();
});

test('a package that replaces the agent ends nothing: the new agent answers for the run, under the same process id [X7]', async () => {
  const next = await buildAgent({ log: silentLog, version: '9.9.9' });
  const restart = 'invoke-rc.d pratique-agent restart';
  await seed({ name: 'pratique-agent', version: '0' }, { name: 'zz-after-it', version: '0' });
  await publish(
    {
      name: 'pratique-agent',
      version: '9.9.9-1',
      files: {
        'usr/sbin/pratique-agent': await readFile(next.path),
        'etc/init.d/pratique-agent': '#!/bin/sh\n: >/var/lib/agent-was-restarted\nkill 1\n',
        'DEBIAN/postinst': `#!/bin/sh\nupdate-rc.d pratique-agent defaults\n${restart}\n`,
      },
    },
    { name: 'zz-after-it', version: '1', fields: { Depends: 'pratique-agent' } },
  );
  const { run, contents } = await root.writeDrive(await offering());
  const { manifestDigest, manifest } = contents;
  const old = root.host;
  old.send({ type: 'offer', run, planDigest: manifest.planDigest, manifestDigest, label: 'PRATIQUE' });
  assert.equal((await old.take('bye', 20_000)).reason, 'agent-update');
  await waitUntil(systemClock, 10_000, async () => root.isReconnected(old));
  assert.equal((await root.connected()).agent.version, '9.9.9');
  root.host.send({ type: 'offer', run, planDigest: manifest.planDigest, manifestDigest, label: 'PRATIQUE' });
  assertInstalled({ installed: await root.host.take('installed') });
  root.host.send({ type: 'ask-confirm', run, planDigest: manifest.planDigest, manifestDigest });
  const confirm = await root.host.take('confirm');
  assert.equal(confirm.inventory.agent.digest, next.digest);
  assert.equal(confirm.results.length, 2);
  await assert.rejects(access(root.path('var/lib/agent-was-restarted')), 'nobody restarted it from outside');
  await assertSound();
});

test('a package with an agent that does not start is a failure by name, and the old agent goes on', async () => {
  await publish({
    name: 'pratique-agent',
    version: '9.9.9-2',
    files: { 'usr/sbin/pratique-agent': '#!/bin/sh\nexit 3\n' },
  });
  const answer = await update();
  assert.ok('installed' in answer);
  assert.deepEqual(
    answer.installed.results.map(({ outcome, code }) => [outcome, code]),
    [['failed', 'agent-unfit']],
  );
  await root.host.settle();
});
