// Which layer of the gate holds what: card model × what may happen to a gated guest. Frames are counted by the kernel of a peer on
// the bridge. Each event is tried with both layers, with the link alone, with the fence alone, and with neither: the control, in
// which frames must arrive. The table that comes out is printed.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import type { RunningVm } from '../../src/hypervisor/hypervisor.ts';
import { enterPrefix } from '../../src/hypervisor/namespace.ts';
import { parseJobs } from '../../src/hypervisor/qmp/answers.ts';
import { connectQmp, type QmpClient } from '../../src/hypervisor/qmp/qmp-client.ts';
import { NIC_MODELS } from '../../src/hypervisor/vm-spec.ts';
import { printTable } from '../fakes/result-table.ts';
import { type GateHouse, gateHouse, gateOf, MAC, makeDriver, watch } from './gate-house.ts';

// Debian's cloud kernel knows virtio only: the emulated cards need the generic one, a larger download, and so the full run.
const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const models = isFull ? NIC_MODELS : (['virtio-net-pci'] as const);
type Model = (typeof NIC_MODELS)[number];

const LAYERS = ['both', 'link alone', 'fence alone', 'neither'] as const;
type Layers = (typeof LAYERS)[number];
const hasLink = (layers: Layers) => layers === 'both' || layers === 'link alone';
const hasFence = (layers: Layers) => layers === 'both' || layers === 'fence alone';

/** What was counted in one cell: at the peer, and dropped by the fence before it. */
type Cell = { readonly event: string; readonly layers: Layers; readonly atPeer: number; readonly atFence: number };

const HEADINGS = ['fault', 'card model', 'layer', 'result', 'frames', 'held by the fence', 'control frames'] as const;

/** Counts what arrives while something happens, and says what it must have been. */
function recorder(t: TestContext, { framesAtPeer, fence }: GateHouse, taps: readonly string[], model: string) {
  const cells: Cell[] = [];
  const lineOf = ({ event, layers, atPeer, atFence }: Cell) => {
    const control = cells.find((each) => each.event === event && each.layers === 'neither');
    return {
      ...{ fault: event, 'card model': model, layer: layers, result: atPeer === 0 ? 'gated, 0 frames' : 'leaks alone' },
      ...{ frames: String(atPeer), 'held by the fence': hasFence(layers) ? String(atFence) : '-' },
      'control frames': control === undefined ? '-' : String(control.atPeer),
    };
  };
  t.after(() => {
    printTable(
      t,
      `what the layers held, ${model}`,
      HEADINGS,
      cells.filter(({ layers }) => layers !== 'neither').map(lineOf),
    );
  });
  return async (event: string, layers: Layers, happen: () => Promise<unknown>) => {
    const dropped = async () => (hasFence(layers) ? (await fence.counters(taps)).fromGuest : 0);
    const before = { atPeer: await framesAtPeer(), atFence: await dropped() };
    await happen();
    // A card may take seconds to find its link again after a rebind: what must arrive is waited for.
    const hasCome = async () =>
      layers === 'neither' ? (await framesAtPeer()) > before.atPeer : (await dropped()) > before.atFence;
    if (!hasLink(layers)) await until(`frames: ${model}, ${event}, ${layers}`, hasCome);
    const cell = {
      event,
      layers,
      atPeer: (await framesAtPeer()) - before.atPeer,
      atFence: (await dropped()) - before.atFence,
    };
    cells.push(cell);
    const where = `${model}, ${event}, ${layers}`;
    if (layers === 'neither') assert.ok(cell.atPeer > 0, `${where}: positive control`);
    else if (hasFence(layers)) assert.equal(cell.atPeer, 0, where);
    if (layers === 'fence alone') assert.ok(cell.atFence > 0, `${where}: the fence had something to hold`);
    return cell;
  };
}

/** Takes the fence away, as somebody who is root would. */
const removeFence = (house: GateHouse) => house.net.run('nft', 'delete', 'table', 'bridge', 'pratique');

async function setLayers(house: GateHouse, vm: RunningVm, layers: Layers): Promise<void> {
  if (hasFence(layers)) await house.fence.ensure();
  else if ((await house.fence.verify()).fault === null) await removeFence(house);
  await (hasLink(layers) ? vm.lowerLinks() : vm.raiseLinks());
}

for (const model of models) {
  test(`two cards of model ${model}: bounced, rebound, reset, with a daemon and a QEMU started anew [A8] [A11] [X1] [X4]`, async (t) => {
    if (!isFull) t.diagnostic(`sample: ${model} of ${NIC_MODELS.length} models; PRATIQUE_TEST_FULL=1 runs all`);
    const house = await gateHouse(t, isFull ? 'generic' : 'cloud');
    const nics = [MAC, '52:54:00:aa:01:01'].map((mac, index) => ({ id: `n${index}`, model, mac, bridge: 'br0' }));
    const spec = house.spec(`leak-${model}`, { nics, memoryMiB: 160 });
    let vm = await house.driver.start(spec);
    const taps = vm.taps.map(({ name }) => name);
    const cell = recorder(t, house, taps, model);
    let guest = watch(t, vm);
    const sent = () => guest.untilSaid(/(sent on eth0.*){2}/s);
    const gate = gateOf(house.fence);
    const begin = async () => {
      await gate.close(vm, 'start');
      await gate.resume(vm);
    };
    await begin();
    await guest.untilSaid(/sent on eth0/);

    // What the link holds alone is seen beside the fence too, whose counter stays at 0.
    for (const layers of LAYERS.filter((each) => isFull || each !== 'link alone')) {
      await setLayers(house, vm, layers);
      for (const event of ['bounce', 'rebind'] as const) {
        await cell(event, layers, async () => {
          guest.order(event);
          await guest.untilSaid(new RegExp(`did ${event}`));
          await sent();
        });
      }
      await cell('reset', layers, async () => {
        const resets = () => guest.events.filter(({ kind }) => kind === 'reset').length;
        const before = resets();
        guest.order('reboot');
        await guest.until('its reset', () => resets() > before);
        await vm.resetStopped();
        // Without the gate, which would put both layers back.
        await vm.resume();
        await guest.untilSaid(/GUEST up/);
        await sent();
      });
    }

    // Whoever starts anew begins with both layers closed; the control takes them away again.
    for (const layers of ['both', 'neither'] as const) {
      await setLayers(house, vm, layers);
      await cell('daemon restart', layers, async () => {
        await vm.release();
        const found = await (await makeDriver(house.folder, house.fence)).adopt(spec);
        assert.ok(found !== null);
        vm = found;
        guest = watch(t, vm);
        if (layers === 'both') await gate.close(vm, 'found after a restart');
        else await setLayers(house, vm, 'neither');
        await sent();
      });
    }
    for (const layers of ['both', 'neither'] as const) {
      await setLayers(house, vm, layers);
      await cell('QEMU restart', layers, async () => {
        await vm.stop({ graceful: false });
        vm = await house.driver.start(spec);
        guest = watch(t, vm);
        await begin();
        await setLayers(house, vm, layers);
        await sent();
      });
    }
  });

  test(`a card of model ${model}: saved and restored, migrated to a file, and one hot-plugged, by the owner of a QEMU behind our back [A8] [X1]`, async (t) => {
    const house = await gateHouse(t, isFull ? 'generic' : 'cloud');
    const taps = ['pqleak0', 'pqleak1'];
    for (const tap of taps) await house.net.ip(`tuntap add dev ${tap} mode tap`, `link set ${tap} master br0 up`);
    await house.fence.ensure();
    const cell = recorder(t, house, taps, model);
    const saved = join(house.folder, 'saved');
    const first = await startOwn(t, { house, model, incoming: null });
    const setLink = (qemu: OwnQemu, up: boolean) => qemu.qmp.execute('set_link', { name: 'card', up });
    await setLink(first, false);
    await first.qmp.execute('cont');
    await first.isSending();

    // Saved while it was plugged in: the state says that its link is up, whatever the host has decided since.
    await setLink(first, true);
    await first.isSending();
    await runJob(first.qmp, 'snapshot-save', { tag: 'up', vmstate: 'store', devices: ['store'] });
    const restore = async () => {
      await setLink(first, false);
      await first.qmp.execute('stop');
      await runJob(first.qmp, 'snapshot-load', { tag: 'up', vmstate: 'store', devices: ['store'] });
      await first.qmp.execute('cont');
      await first.isSending();
    };
    await cell('restored snapshot', 'both', restore);
    await cell('hot-plugged card', 'both', async () => {
      await plug(first.qmp);
      await first.isSending(/sent on eth1/);
    });
    await removeFence(house);
    await cell('hot-plugged card', 'neither', () => first.isSending(/sent on eth1.*sent on eth1/s));
    await setLink(first, true);
    await cell('restored snapshot', 'neither', async () => {
      await first.isSending(/sent on eth0.*sent on eth0/s);
    });
    await house.fence.ensure();

    await first.qmp.execute('stop');
    await first.qmp.execute('migrate', { uri: `exec:cat >${saved}` });
    await first.untilMigrated();
    await first.end();
    for (const layers of ['both', 'neither'] as const) {
      if (layers === 'neither') await removeFence(house);
      await cell('migrated from a file', layers, async () => {
        const second = await startOwn(t, { house, model, incoming: `exec:cat ${saved}`, hasSecondCard: true });
        if (layers === 'both') await setLink(second, false);
        await second.untilMigrated();
        await second.qmp.execute('cont');
        await second.isSending();
        await second.end();
      });
    }
  });
}

type OwnQemu = {
  readonly qmp: QmpClient;
  /** Resolves once the guest says anew that it sent. */
  readonly isSending: (words?: RegExp) => Promise<void>;
  readonly untilMigrated: () => Promise<void>;
  readonly end: () => Promise<void>;
};

const TIMEOUT_MS = 60_000;

/** A QEMU as its owner starts it: no sandbox, a monitor and a serial console of its own, on a tap that the fence covers by its name. */
async function startOwn(
  t: TestContext,
  options: {
    readonly house: GateHouse;
    readonly model: Model;
    readonly incoming: string | null;
    readonly hasSecondCard?: boolean;
  },
): Promise<OwnQemu> {
  const { house, model, incoming } = options;
  const { folder, guest, net } = house;
  const [socket, store] = [join(folder, 'own.qmp'), join(folder, 'store.qcow2')];
  if (incoming === null) await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', store, '512M']);
  const card = (index: number, properties: string) => [
    ...['-netdev', `tap,id=cable${index},ifname=pqleak${index},script=no,downscript=no`],
    ...['-device', properties],
  ];
  const argv = [
    ...['qemu-system-x86_64', '-name', 'theirs', '-M', 'q35,usb=off', '-accel', 'tcg', '-m', '160', '-S'],
    ...['-cpu', 'qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16', '-nodefaults', '-display', 'none', '-serial', 'stdio'],
    ...['-qmp', `unix:${socket},server=on,wait=off`],
    ...['-kernel', guest.kernel, '-initrd', guest.initrd, '-append', guest.commandLine],
    ...['-device', 'pcie-root-port,id=spare,chassis=1,slot=1'],
    ...card(0, `${model},id=card,netdev=cable0,mac=${MAC},romfile=`),
    ...(options.hasSecondCard === true ? card(1, SECOND_CARD) : []),
    ...['-blockdev', `driver=qcow2,node-name=store,file.driver=file,file.filename=${store}`],
    ...(incoming === null ? [] : ['-incoming', incoming]),
  ];
  const [program = '', ...args] = [...enterPrefix(net.namespace), ...argv];
  const qemu = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => qemu.kill('SIGKILL'));
  const said = listen(qemu);
  await until('its monitor', async () => (await runCommand(['find', folder, '-name', 'own.qmp'])) !== '');
  const qmp = await connectQmp({ path: socket, clock: systemClock });
  return {
    qmp,
    isSending: async (words = /sent on eth0.*sent on eth0.*sent on eth0/s) => {
      said.text = '';
      await until(String(words), async () => words.test(said.text));
    },
    untilMigrated: async () => {
      await until('the end of the migration', async () => {
        // The cast holds: QEMU's QAPI documents the field.
        const { status } = (await qmp.execute('query-migrate')) as { readonly status?: string };
        assert.notEqual(status, 'failed');
        return status === 'completed';
      });
    },
    end: async () => {
      const ended = once(qemu, 'exit');
      qmp.close();
      qemu.kill('SIGKILL');
      await ended;
      await runCommand(['rm', '-f', socket]);
    },
  };
}

const SECOND_CARD = 'virtio-net-pci,id=card1,netdev=cable1,mac=52:54:00:aa:00:05,bus=spare,romfile=';

async function plug(qmp: QmpClient): Promise<void> {
  const cable = { type: 'tap', id: 'cable1', ifname: 'pqleak1', script: 'no', downscript: 'no' };
  await qmp.execute('netdev_add', cable);
  const device = { driver: 'virtio-net-pci', id: 'card1', netdev: 'cable1', mac: MAC, bus: 'spare', romfile: '' };
  await qmp.execute('device_add', device);
}

function listen(qemu: ChildProcess): { text: string } {
  const said = { text: '' };
  qemu.stdout?.on('data', (piece: Buffer) => {
    said.text += piece.toString('latin1');
  });
  return said;
}

async function until(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const deadlineMs = systemClock.monotonicMs() + TIMEOUT_MS;
  while (!(await isSo())) {
    assert.ok(systemClock.monotonicMs() < deadlineMs, `not within ${TIMEOUT_MS} ms: ${what}`);
    await systemClock.sleep(50);
  }
}

async function runJob(qmp: QmpClient, command: string, args: Readonly<Record<string, unknown>>): Promise<void> {
  const id = `${command}-${Math.round(systemClock.monotonicMs())}`;
  await qmp.execute(command, { 'job-id': id, ...args });
  await until(command, async () => {
    const job = parseJobs(await qmp.execute('query-jobs'), 'query-jobs').find((one) => one.id === id);
    assert.equal(job?.error, undefined);
    return job?.status === 'concluded';
  });
  await qmp.execute('job-dismiss', { id });
}
