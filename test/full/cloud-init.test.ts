// Debian's own cloud-init in a guest behind the gate: its first boot with the host's seed, and its second one without.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { buildAgent } from '../../guest-agent/build.ts';
import { buildImage } from '../../images/images.ts';
import { makeVmParts } from '../../images/vm-parts.ts';
import { type DemoDaemon, makeDemoDaemon } from '../../proxy/demo/demo-daemon.ts';
import { DEMO_BRIDGE, type DemoNetwork, makeDemoNetwork, waitUntil } from '../../proxy/demo/demo-network.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { vmId } from '../fakes/service.ts';

const VM = vmId('cloud1');
const MAC = '52:54:00:79:00:02';
const ADDRESS = '10.77.0.2';
const SECRET = 'sesame-of-the-guest';
/** systemd on an emulated processor that others use too takes minutes. */
const SETTLE_TIMEOUT_MS = 1_500_000;
const PAGE_TIMEOUT_MS = 600_000;
const DEADLINES = { booting: 1_200, reporting: 300, offering: 600, rebooting: 1_200, judging: 600 };

/** What cloud-init says of itself once it is done, where nginx serves it: cloud-init runs this script in its last stage. */
const FACTS = `#!/bin/sh
page=/run/pratique-guest/www/cloud
mkdir -p /run/pratique-guest/www
( { cloud-init status --wait --long; echo; cloud-init schema --system; hostname; ip -4 -o address show dev eth0; } >$page.new 2>&1
  mv $page.new $page ) &
`;
/** The same for a boot in which cloud-init does nothing: by nginx's own unit, from the next boot on. */
const PLAIN = `[Service]
ExecStartPre=/bin/sh -c 'mkdir -p /run/pratique-guest/www; { cloud-init status; hostname; } >/run/pratique-guest/www/plain 2>&1; true'
`;

const toToml = (text: string) => JSON.stringify(text);
const GUESTS = `
[items.name]
kind = "hostname"
hostname = "\${vm}"

[items.lan]
kind = "network"
interfaces = [{ mac = "${MAC}", addresses = ["${ADDRESS}/24"] }]

[items.facts]
kind = "file"
path = "/var/lib/cloud/scripts/per-boot/facts"
mode = "0755"
content = ${toToml(FACTS)}
verbatim = true

[items.plain]
kind = "file"
path = "/etc/systemd/system/nginx.service.d/plain.conf"
content = ${toToml(PLAIN)}

[items.secret]
kind = "file"
path = "/etc/secret"
mode = "0600"
content = { secret = "door" }
`;

type Scene = { readonly folder: string; readonly daemon: DemoDaemon; readonly network: DemoNetwork };

async function makeScene(t: TestContext): Promise<Scene> {
  const cacheFolder = defaultCacheFolder();
  await mkdir(cacheFolder, { recursive: true });
  const agent = await buildAgent({ cacheFolder, log: silentLog });
  const image = await buildImage({ name: 'debian-cloud', agentPath: agent.path, cacheFolder, log: silentLog });
  const isRoot = process.getuid?.() === 0;
  const folder = await mkdtemp(join(isRoot ? '/var/tmp' : tmpdir(), 'pratique-cloud-'));
  await chmod(folder, 0o711);
  const runFolder = await mkdtemp(join(isRoot ? '/run' : tmpdir(), 'pqc'));
  await mkdir(join(folder, 'guests/secrets'), { recursive: true });
  await writeFile(join(folder, 'guests/default.toml'), GUESTS);
  await writeFile(join(folder, 'guests/secrets/door'), SECRET, { mode: 0o600 });
  const network = await makeDemoNetwork({ folder, clock: systemClock, prefix: 'pqcloud' });
  const diskRoots = [folder, ...image.disks.map(({ path }) => dirname(path)), cacheFolder];
  const configuration = { diskRoots, deadlines: DEADLINES, guestConfigFolder: join(folder, 'guests') };
  const daemon = await makeDemoDaemon({ folder, runFolder, configuration, clock: systemClock });
  t.after(async () => {
    await daemon.service.stopVm(VM, { force: true }).catch(() => {}); // It may have ended.
    await daemon.stop();
    await network.close();
    for (const each of [folder, runFolder]) await rm(each, { recursive: true, force: true });
  });
  await daemon.start();
  const parts = await makeVmParts({ image, folder: join(folder, 'disks'), vm: VM, wishes: {} });
  await daemon.service.addVm(
    {
      ...{ format: 'pratique.vm/1', kind: 'managed', vm: VM, machine: 'q35', cpus: 1, ...parts, cloudInit: true },
      nics: [{ id: 'net0', model: 'virtio-net-pci', mac: MAC, bridge: DEMO_BRIDGE }],
      namespace: network.namespace,
    },
    { install: 'none' },
  );
  return { folder, daemon, network };
}

/** Starts it and waits until it is plugged in. When that was, by the wall clock. */
async function bootToPlug({ daemon }: Scene): Promise<number> {
  const { service } = daemon;
  await service.startVm(VM);
  const story = async () =>
    (await service.pastEvents({ vm: VM, afterSeq: 0, limit: 1_000 }))
      .map(({ state, text }) => `${state}: ${text}`)
      .join('\n');
  let state = 'booting';
  const isSettled = await waitUntil(systemClock, SETTLE_TIMEOUT_MS, async () => {
    state = (await service.showVm(VM)).state;
    return ['connected', 'quarantined', 'off'].includes(state);
  });
  assert.ok(isSettled && state === 'connected', await story());
  const events = await service.pastEvents({ vm: VM, afterSeq: 0, limit: 1_000 });
  const opened = events.findLast(({ kind, text }) => kind === 'gate' && text.startsWith('open'));
  assert.ok(opened !== undefined, await story());
  return opened.atMs;
}

async function pageOf({ network }: Scene, path: string): Promise<string> {
  let text: string | null = null;
  const isThere = await waitUntil(systemClock, PAGE_TIMEOUT_MS, async () => {
    text = await network.fetchPage(`http://${ADDRESS}${path}`, 30_000);
    // nginx is up before cloud-init is done.
    return text !== null && !text.includes('404 Not Found');
  });
  assert.ok(isThere && text !== null, `the guest serves no page ${path}`);
  return text;
}

test('cloud-init takes the seed at its first boot, is left alone at its second, and sends nothing before the plug [A8] [A14] [X1]', async (t) => {
  const scene = await makeScene(t);
  const seed = join(scene.folder, 'data/seeds', `${VM}.iso`);
  const first = await bootToPlug(scene);
  const cloud = await pageOf(scene, '/cloud');
  t.diagnostic(cloud.trim().replaceAll('\n', ' | '));
  assert.match(cloud, /^status: done$/m);
  assert.match(cloud, /DataSourceNoCloud/);
  assert.match(cloud, /Valid cloud-config/);
  assert.match(cloud, new RegExp(`^${VM}$`, 'm'));
  assert.match(cloud, new RegExp(`inet ${ADDRESS}/24`));
  // Seconds: the watcher and the daemon have one clock, but the note is written after the cable is in.
  const early = (await scene.network.framesFrom(MAC)).filter(({ atMs }) => atMs < first - 2_000);
  assert.deepEqual(early, []);
  assert.ok((await scene.network.framesFrom(MAC)).length > 0, 'positive control: its frames arrive now');
  assert.ok((await stat(seed)).size > 0, 'the seed is there while it may still be read');

  await scene.daemon.service.stopVm(VM, { force: true });
  const isOff = async () => (await scene.daemon.service.showVm(VM)).state === 'off';
  assert.ok(await waitUntil(systemClock, 60_000, isOff));
  await bootToPlug(scene);
  const plain = await pageOf(scene, '/plain');
  t.diagnostic(plain.trim().replaceAll('\n', ' | '));
  assert.match(plain, /^status: disabled$/m);
  assert.match(plain, new RegExp(`^${VM}$`, 'm'));
  await assert.rejects(stat(seed), { code: 'ENOENT' });
  const log = await readFile(scene.daemon.logPath, 'utf8');
  assert.ok(!log.includes(SECRET));
});
