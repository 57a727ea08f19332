// apt-cacher-ng in the bench `patch`: the guest boots with its cable plugged in and upgrades itself before its application starts.
import { type ChildProcess, spawn } from 'node:child_process';
import { chown, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { GuestImage } from '../../images/images.ts';
import { waitUntil } from '../../proxy/demo/demo-network.ts';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import { round } from './gate-figures.ts';
import { HOST_ADDRESS, RELAY_PORT } from './patch-network.ts';
import { installedPeer } from './patch-peers.ts';
import { powerOn } from './patch-plain-vm.ts';
import {
  APT,
  exactVersions,
  type Method,
  type Patched,
  type PatchSite,
  proveOverNetwork,
  type Slot,
  secondsBetween,
  sourcesList,
  specOf,
} from './patch-site.ts';

const PROGRAM = 'apt-cacher-ng';
const PORT = 3142;
const START_TIMEOUT_MS = 30_000;

export function makeAptCacher(): Method {
  let cacher: ChildProcess | null = null;
  let image: GuestImage | null = null;
  return {
    name: 'apt-cacher-ng',
    title: 'a VM that is on the network from the start and upgrades itself through apt-cacher-ng on the host',
    settings: [
      'apt-cacher-ng runs on the host, one hop away; its cache is empty before the first guest',
      'no translations of package lists, no recommended packages, no pseudo-terminal for dpkg',
      'apt-get runs as soon as the address is set; the application starts after it',
    ],
    prepare: async (site) => {
      await installedPeer(PROGRAM);
      cacher = await startCacher(site);
      image = await makeUpgradingImage(site);
    },
    patch: async (site, slot) => {
      if (image === null) throw new Error('assertion failed: prepare made the image');
      return await patchOne(site, slot, image);
    },
    close: async () => {
      if (cacher !== null) await end(cacher);
    },
  };
}

/** Starts it inside the bench's network under its own user, with a cache and a configuration of its own. */
async function startCacher(site: PatchSite): Promise<ChildProcess> {
  const folder = join(site.folder, 'cacher');
  const idOf = async (what: string) =>
    Number(await runCommand(['id', what, PROGRAM], { purpose: `looking up the user of ${PROGRAM}` }));
  const [uid, gid] = [await idOf('-u'), await idOf('-g')];
  for (const path of [folder, join(folder, 'cache'), join(folder, 'log'), join(folder, 'conf')]) {
    await mkdir(path);
    await chown(path, uid, gid);
  }
  const settings = [
    `CacheDir: ${folder}/cache`,
    `LogDir: ${folder}/log`,
    'SupportDir: /usr/lib/apt-cacher-ng',
    `Port: ${PORT}`,
    `BindAddress: ${HOST_ADDRESS}`,
    'ForeGround: 1',
    'AllowUserPorts: 0',
    `PidFile: ${folder}/pid`,
    `SocketPath: ${folder}/socket`,
  ];
  await writeFile(join(folder, 'conf', 'acng.conf'), `${settings.join('\n')}\n`);
  const asUser = ['setpriv', `--reuid=${uid}`, `--regid=${gid}`, '--clear-groups'];
  const argv = [...site.network.enter, ...asUser, '/usr/sbin/apt-cacher-ng', '-c', join(folder, 'conf')];
  const [program = '', ...args] = argv;
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (piece: Buffer) => {
    said = (said + piece.toString('utf8')).slice(-2_000);
  });
  const probe = ['bash', '-c', `exec 3<>/dev/tcp/${HOST_ADDRESS}/${PORT}`];
  const isUp = await waitUntil(systemClock, START_TIMEOUT_MS, async () => {
    if (child.exitCode !== null) return true;
    return (await tryCommand([...site.network.enter, ...probe])).exitCode === 0;
  });
  if (isUp && child.exitCode === null) return child;
  await end(child);
  throw new Error(`apt-cacher-ng did not start: ${said}`);
}

/** The image with a program in the agent's place that upgrades first and then lets the application start. */
async function makeUpgradingImage(site: PatchSite): Promise<GuestImage> {
  const [disk] = site.image.disks;
  if (disk === undefined) throw new Error('assertion failed: the image has a disk');
  const folder = join(site.folder, 'upgrading');
  await mkdir(folder);
  const path = join(folder, 'root.raw');
  await runCommand(['cp', '--sparse=always', '--reflink=auto', disk.path, path], { timeoutMs: 300_000 });
  const files: Readonly<Record<string, string>> = {
    '/usr/lib/pratique-guest/agent': upgrade(site),
    '/etc/apt/sources.list': sourcesList(site.suite, `http://${HOST_ADDRESS}:${RELAY_PORT}/debian`),
    '/etc/apt/apt.conf.d/90proxy': `Acquire::http::Proxy "http://${HOST_ADDRESS}:${PORT}";\n`,
  };
  const requests: string[] = [];
  for (const [index, [target, content]] of Object.entries(files).entries()) {
    const source = join(folder, String(index));
    await writeFile(source, content);
    // debugfs goes on after what cannot be done: a file that is not there.
    requests.push(`rm ${target}`, `write ${source} ${target}`, `set_inode_field ${target} mode 0100755`);
  }
  await runCommand(['debugfs', '-w', '-f', '-', path], { input: `${requests.join('\n')}\n` });
  return { ...site.image, disks: [{ ...disk, path }] };
}

function upgrade(site: PatchSite): string {
  return `#!/bin/busybox sh
say() { read -r up _ </proc/uptime; echo "bench: $1 at $up"; }
if [ ! -e /run/pratique-agent-started ]; then
  export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
  say started
  ${APT} update && say listed && ${APT} --only-upgrade install ${exactVersions(site.updates)} && say upgraded
  : >/run/pratique-agent-started
fi
exec /bin/busybox sleep 2147483647
`;
}

async function patchOne(site: PatchSite, slot: Slot, image: GuestImage): Promise<Patched> {
  const spec = await specOf(site, slot, { image, hasAgent: false });
  const startMs = systemClock.monotonicMs();
  const vm = await powerOn(site, slot, spec);
  try {
    await proveOverNetwork(site, slot);
    const reachedMs = systemClock.monotonicMs();
    const seconds = secondsBetween(startMs, reachedMs);
    return { seconds, phases: phasesOf(await vm.console(), seconds) };
  } catch (cause) {
    throw new Error(`${slot.name}: its console ended with: ${(await vm.console()).slice(-1_500)}`, { cause });
  } finally {
    await vm.powerOff();
  }
}

/** By the guest's own uptime; what it did before its clock ran counts as boot. */
function phasesOf(printed: string, totalSeconds: number): Readonly<Record<string, number>> {
  const at = (what: string) => Number(new RegExp(`bench: ${what} at ([0-9.]+)`).exec(printed)?.[1]);
  const [lists, install] = [round(at('listed') - at('started'), 2), round(at('upgraded') - at('listed'), 2)];
  return { boot: round(totalSeconds - lists - install, 2), lists, install };
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.kill('SIGKILL');
  await ended;
}
