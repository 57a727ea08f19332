// The guest images on real virtual machines: start order, what survives a power cut, what is sent and served, how they end.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { chmod, mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  buildImage,
  type DiskSpec,
  type GuestImage,
  type GuestWishes,
  guestCommandLine,
  makeVmDisk,
} from '../../images/images.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { silentLog } from '../../src/base/log.ts';
import type { VmId } from '../../src/model/ids.ts';

/** Stands in for the agent: counts its starts on the disk, says what the guest serves, and records its end. */
const STUB_AGENT = `#!/bin/sh
say() { echo "stub: $*" >/dev/console; }
trap 'echo recorded >/var/lib/pratique/shutdown; sync; say recorded; exit 0' TERM
starts=$(cat /var/lib/pratique/starts 2>/dev/null || echo 0)
starts=$((starts + 1))
echo $starts >/var/lib/pratique/starts
sync
say "start $starts, shutdown $(cat /var/lib/pratique/shutdown 2>/dev/null || echo none)"
for page in version cgi-bin/versions; do
  answer=
  for try in 1 2 3 4 5 6 7 8 9 10; do
    answer=$(/bin/busybox timeout 2 /bin/busybox wget -q -O - "http://127.0.0.1/$page" 2>/dev/null | grep -E '^([0-9.]+$|jq )') && break
    /bin/busybox usleep 100000
    grep -q 'pq.mode' /proc/cmdline && break
  done
  [ -n "$answer" ] && say "served $page: $answer" && [ ! -d /etc/apt ] && break
done
while read -r word; do [ "$word" = test.poweroff ] && /sbin/poweroff; done <<END
$(tr ' ' '\\n' </proc/cmdline)
END
while :; do /bin/busybox usleep 100000; done
`;

const SERVED = /stub: served [^\n]*\n/;
/** Milliseconds for one guest step on a busy machine without KVM; alone it takes 3 s. */
const GUEST_TIMEOUT_MS = 90_000;

let folder: string;
let tiny: GuestImage;
const running = new Set<ChildProcess>();
const wires = new Set<Wire>();
let vms = 0;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-images-'));
  await writeFile(join(folder, 'agent'), STUB_AGENT);
  await chmod(join(folder, 'agent'), 0o755);
  tiny = await build('tiny');
});

after(async () => {
  for (const qemu of running) qemu.kill('SIGKILL');
  for (const wire of wires) wire.close();
  await rm(folder, { recursive: true, force: true });
});

describe('the tiny image', () => {
  test('starts the agent before the application, which serves the stale version [A5]', async () => {
    const guest = await boot(tiny, await newDisk(tiny), {});
    const console = await guest.waitFor(SERVED);
    assert.ok(console.indexOf('guest: agent starting') < console.indexOf('guest: application starting'), console);
    assert.match(console, /stub: served version: 1\.0\.0\r?\n/);
    await guest.cutPower();
  });

  test('keeps what was synced when the power is cut [X4]', async () => {
    const disk = await newDisk(tiny);
    const first = await boot(tiny, disk, {});
    assert.match(await first.waitFor(SERVED), /stub: start 1, shutdown none/);
    await first.cutPower();
    const second = await boot(tiny, disk, {});
    const console = await second.waitFor(SERVED);
    assert.match(console, /stub: start 2, shutdown none/);
    assert.match(console, /stub: served version: 1\.0\.0/);
    await second.cutPower();
  });

  test('lets the agent record the shutdown before the power goes [A6]', async () => {
    const disk = await newDisk(tiny);
    const first = await boot(tiny, disk, {}, { words: 'test.poweroff' });
    const console = await first.waitForEnd();
    assert.match(console, /stub: recorded[\s\S]*guest: shut down/);
    const second = await boot(tiny, disk, {});
    assert.match(await second.waitFor(/stub: start 2[^\n]*\n/), /stub: start 2, shutdown recorded/);
    await second.cutPower();
  });

  test('sends a broadcast about every 100 ms from its own address when told to chatter', async () => {
    const wire = await listenToWire();
    const guest = await boot(tiny, await newDisk(tiny), { address: '10.77.0.2/24', chatter: true }, { wire });
    await guest.waitFor(SERVED);
    wire.frames.length = 0;
    await sleep(3_000);
    const pings = wire.frames.filter(isBroadcastPing);
    const announcements = wire.frames.filter(isAnnouncement);
    assert.ok(pings.length >= 8, `${pings.length} broadcast pings in 3 s`);
    assert.ok(announcements.length >= 1, `${announcements.length} announcements in 3 s`);
    await guest.cutPower();
  });

  test('sends no broadcast ping when not told to chatter', async () => {
    const wire = await listenToWire();
    const guest = await boot(tiny, await newDisk(tiny), { address: '10.77.0.2/24' }, { wire });
    await guest.waitFor(SERVED);
    await sleep(2_000);
    assert.equal(wire.frames.filter(isBroadcastPing).length, 0);
    await guest.cutPower();
  });

  test('runs its application without an agent in the mode no-agent', async () => {
    const guest = await boot(tiny, await newDisk(tiny), { mode: 'no-agent' });
    const console = await guest.waitFor(/guest: application starting[^\n]*\n/);
    await sleep(1_000);
    assert.match(console, /guest: agent left out/);
    assert.doesNotMatch(guest.console(), /stub:/);
    await guest.cutPower();
  });

  test('gives every VM a disk of its own', async () => {
    const shared = tiny.disks[0];
    assert.ok(shared);
    const before = await stat(shared.path);
    const disk = await newDisk(tiny);
    const guest = await boot(tiny, disk, {});
    await guest.waitFor(SERVED);
    await guest.cutPower();
    assert.notEqual(disk.path, shared.path);
    assert.equal((await stat(shared.path)).mtimeMs, before.mtimeMs);
  });
});

describe('the Debian image', () => {
  test('starts the agent before the application, which lists packages at release level [A5]', async () => {
    const debian = await build('debian');
    const guest = await boot(debian, await newDisk(debian), {});
    const console = await guest.waitFor(/stub: served cgi-bin[^\n]*\n/);
    assert.ok(console.indexOf('guest: agent starting') < console.indexOf('guest: application starting'), console);
    assert.match(console, /stub: served cgi-bin\/versions: jq \d/);
    assert.match(console, /stub: served version: 1\.0\.0\r?\n/);
    await guest.cutPower();
  });
});

async function build(name: 'tiny' | 'debian'): Promise<GuestImage> {
  return await buildImage({
    name,
    agentPath: join(folder, 'agent'),
    cacheFolder: defaultCacheFolder(),
    log: silentLog,
  });
}

async function newDisk(image: GuestImage): Promise<DiskSpec> {
  vms += 1;
  // The cast holds: letters and digits are a VM's name.
  return await makeVmDisk({ image, folder: join(folder, 'vms'), vm: `guest${vms}` as VmId });
}

type Guest = {
  readonly console: () => string;
  /** Resolves with the console's text once it matches. */
  readonly waitFor: (pattern: RegExp) => Promise<string>;
  readonly waitForEnd: () => Promise<string>;
  readonly cutPower: () => Promise<void>;
};

async function boot(
  image: GuestImage,
  disk: DiskSpec,
  wishes: GuestWishes,
  extra: { readonly words?: string; readonly wire?: Wire } = {},
): Promise<Guest> {
  const commandLine = `${guestCommandLine(image, wishes)} ${extra.words ?? ''}`;
  const quiet = ['-nodefaults', '-no-user-config', '-display', 'none', '-serial', 'stdio', '-no-reboot'];
  const machine = ['-machine', 'q35', '-accel', 'tcg', '-m', String(image.memoryMiB), '-device', 'virtio-serial-pci'];
  const kernel = ['-kernel', image.kernel, '-initrd', image.initrd, '-append', commandLine];
  const drive = ['-drive', `file=${disk.path},format=${disk.format},if=virtio`];
  const nic = extra.wire === undefined ? ['-nic', 'none'] : extra.wire.nicOptions;
  const qemu = spawn('qemu-system-x86_64', [...quiet, ...machine, ...kernel, ...drive, ...nic], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  running.add(qemu);
  const ended = once(qemu, 'exit').then(() => running.delete(qemu));
  let text = '';
  qemu.stdout.on('data', (piece: Buffer) => {
    text += piece.toString('latin1');
  });
  const waitUntil = async (isDone: () => boolean, what: string): Promise<string> => {
    for (let waitedMs = 0; waitedMs < GUEST_TIMEOUT_MS; waitedMs += 50) {
      if (isDone()) return text;
      await sleep(50);
    }
    throw new assert.AssertionError({ message: `the guest did not come to ${what}; its console says:\n${text}` });
  };
  return {
    console: () => text,
    waitFor: (pattern) => waitUntil(() => pattern.test(text), String(pattern)),
    waitForEnd: () => waitUntil(() => !running.has(qemu), 'its end'),
    cutPower: async () => {
      qemu.kill('SIGKILL');
      await ended;
    },
  };
}

type Wire = {
  /** Ethernet frames that left the guest. */
  readonly frames: Buffer[];
  readonly nicOptions: readonly string[];
  readonly close: () => void;
};

/** The other end of the guest's cable: QEMU sends each frame as one datagram. */
async function listenToWire(): Promise<Wire> {
  const socket = createSocket('udp4');
  socket.bind(0, '127.0.0.1');
  await once(socket, 'listening');
  const frames: Buffer[] = [];
  socket.on('message', (frame) => frames.push(frame));
  const there = `udp=127.0.0.1:${socket.address().port},localaddr=127.0.0.1:0`;
  const nicOptions = ['-netdev', `socket,id=wire,${there}`, '-device', 'virtio-net-pci,netdev=wire'];
  const wire = { frames, nicOptions, close: () => socket.close() };
  wires.add(wire);
  return wire;
}

const BROADCAST = 'ffffffffffff';

function isBroadcastPing(frame: Buffer): boolean {
  const isIcmp = frame.toString('hex', 12, 14) === '0800' && frame[23] === 1;
  return (
    isIcmp && frame.toString('hex', 0, 6) === BROADCAST && frame.subarray(26, 30).equals(Buffer.from([10, 77, 0, 2]))
  );
}

function isAnnouncement(frame: Buffer): boolean {
  const isArp = frame.toString('hex', 12, 14) === '0806';
  return (
    isArp && frame.toString('hex', 0, 6) === BROADCAST && frame.subarray(28, 32).equals(Buffer.from([10, 77, 0, 2]))
  );
}
