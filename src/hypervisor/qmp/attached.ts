// Attached VMs: somebody else started their QEMU and gave us a monitor of our own. We trust nothing about it unseen.
import { connect } from 'node:net';
import type { Clock } from '../../base/clock.ts';
import { digestOf, randomToken } from '../../base/digest.ts';
import { canonicalJson } from '../../base/digest-text.ts';
import { hostBootId } from '../../base/process-id.ts';
import { HypervisorError } from '../errors.ts';
import { type Fence, isCoveredName } from '../fence.ts';
import type { AdoptedState, RunningVm, VmEvent } from '../hypervisor.ts';
import { HOST_NAMESPACE } from '../namespace.ts';
import { readInterface } from '../network.ts';
import { type AttachedVm, gatedNics, type Namespace } from '../vm-spec.ts';
import { networkCards, parseChardevs, parseNodes, parseQomList, parseStatus, parseText } from './answers.ts';
import { attachedSlots } from './attached-drive.ts';
import { AGENT_PORT_NAME } from './command-line.ts';
import { makeMachine } from './machine.ts';
import { readNetworkText } from './network-text.ts';
import type { QmpDriverOptions } from './options.ts';
import { connectQmp, type QmpClient } from './qmp-client.ts';
import { checkSocketPath, forgetLaunch, readLaunch, recordLaunch, runFiles } from './run-files.ts';

/**
 * Takes over somebody else's QEMU: checks that every NIC is a tap on a bridge that we were told of, fences those taps, and
 * says how the VM was found. Null when nobody listens on its monitor.
 */
export async function adoptAttached(spec: AttachedVm, options: QmpDriverOptions): Promise<RunningVm | null> {
  checkSocketPath(spec.vm, spec.qmpSocket);
  checkSocketPath(spec.vm, spec.channelSocket);
  const qmp = await connectIfThere(spec.qmpSocket, options.clock);
  if (qmp === null) return null;
  const namespace = spec.namespace ?? HOST_NAMESPACE;
  try {
    const { status } = parseStatus(await qmp.execute('query-status'), 'query-status');
    refuseMigrated(spec, status);
    await checkCards(spec, qmp);
    await checkTaps(spec, namespace);
    const port = await findAgentPort(spec, qmp);
    const slots = await attachedSlots(spec, qmp);
    const fence = await options.fenceFor(namespace);
    await fence.ensure();
    await guardTaps(spec, fence);
    const adopted = await howFound(spec, options, qmp, status);
    const missed: readonly VmEvent[] = [{ kind: 'agent-port', isOpen: port.isOpen }];
    return makeMachine({
      vm: spec.vm,
      namespace,
      taps: gatedNics(spec.nics).map((nic) => ({ name: nic.tap, nic: nic.id })),
      nicDevices: gatedNics(spec.nics).map((nic) => nic.id),
      channelSocket: spec.channelSocket,
      adopted,
      missed,
      qmp,
      slots,
      media: [],
      checkCards: () => checkCards(spec, qmp),
      agentPort: port.id,
      isManaged: false,
      hasEnded: async () => !(await isListening(spec.qmpSocket)),
      kill: null,
      onEnded: () => fence.expel(gatedNics(spec.nics).map((nic) => nic.tap)),
      clock: options.clock,
      log: options.log,
      ...(options.unplugTimeoutMs === undefined ? {} : { unplugTimeoutMs: options.unplugTimeoutMs }),
    });
  } catch (error) {
    qmp.close();
    throw error;
  }
}

function refuse(spec: AttachedVm, detail: string, next: string): HypervisorError {
  return new HypervisorError('refused/attached', `${spec.vm}: ${detail}`, { next });
}

/** Frames leave a VM that arrives by migration before anybody can stop them (its announcement, its own link state). */
function refuseMigrated(spec: AttachedVm, status: string): void {
  if (!['inmigrate', 'postmigrate', 'finish-migrate', 'restore-vm'].includes(status)) return;
  throw refuse(
    spec,
    `its QEMU is in the state ${status}`,
    'start it anew: migrated and restored VMs cannot be gated from their first frame',
  );
}

/** Every network card must be one that we were told of, and the other end of a gated one a tap. */
async function checkCards(spec: AttachedVm, qmp: QmpClient): Promise<void> {
  const told = new Set(spec.nics.map((nic) => nic.id));
  const untold = networkCards(await qmp.execute('query-pci')).find((id) => !told.has(id));
  if (untold !== undefined) {
    throw refuse(spec, `it has a network card "${untold}" that its spec does not name`, 'name every card in the spec');
  }
  const text = await qmp.execute('human-monitor-command', { 'command-line': 'info network' });
  const cards = readNetworkText(parseText(text, 'info network'));
  const stranger = cards.find((card) => !told.has(card.nic));
  if (stranger !== undefined) {
    throw refuse(
      spec,
      `it has a network card "${stranger.nic}" that its spec does not name`,
      'name every card in the spec',
    );
  }
  for (const nic of spec.nics) {
    const card = cards.find((one) => one.nic === nic.id);
    if (card === undefined) throw refuse(spec, `it has no network card "${nic.id}"`, 'correct the spec');
    if (nic.gated === false) continue;
    if (card.backend !== 'tap') {
      throw refuse(
        spec,
        `its card "${nic.id}" is connected by ${card.backend ?? 'nothing'}, not by a tap`,
        'use a tap: nothing else can be fenced',
      );
    }
    if (card.tap !== null && card.tap !== nic.tap) {
      throw refuse(spec, `its card "${nic.id}" uses the tap ${card.tap}, the spec says ${nic.tap}`, 'correct the spec');
    }
  }
}

async function checkTaps(spec: AttachedVm, namespace: Namespace): Promise<void> {
  for (const nic of gatedNics(spec.nics)) {
    const facts = await readInterface(namespace, nic.tap);
    if (facts?.isTap !== true) throw refuse(spec, `${nic.tap} is not a tap`, 'correct the spec, or its namespace');
    if (facts.master === null || (await readInterface(namespace, facts.master))?.kind !== 'bridge') {
      throw refuse(
        spec,
        `the tap ${nic.tap} is on no Linux bridge`,
        'put it on one: the fence sees only bridged frames',
      );
    }
  }
}

async function guardTaps(spec: AttachedVm, fence: Fence): Promise<void> {
  await fence.guard(
    gatedNics(spec.nics)
      .map((nic) => nic.tap)
      .filter((tap) => !isCoveredName(tap)),
  );
}

/** The virtio-serial port of our agent, wherever QEMU's owner put it. */
async function findAgentPort(
  spec: AttachedVm,
  qmp: QmpClient,
): Promise<{ readonly id: string; readonly isOpen: boolean }> {
  for (const path of ['/machine/peripheral', '/machine/peripheral-anon']) {
    const devices = parseQomList(await qmp.execute('qom-list', { path }), 'qom-list');
    for (const { name } of devices.filter((one) => one.type === 'child<virtserialport>')) {
      const read = async (property: string) =>
        parseText(await qmp.execute('qom-get', { path: `${path}/${name}`, property }), `qom-get ${property}`);
      if ((await read('name')) !== AGENT_PORT_NAME) continue;
      const label = await read('chardev');
      const chardevs = parseChardevs(await qmp.execute('query-chardev'), 'query-chardev');
      const isOpen = chardevs.find((one) => one.label === label)?.['frontend-open'] === true;
      return { id: path.endsWith('anon') ? '' : name, isOpen };
    }
  }
  throw refuse(spec, `it has no virtio-serial port ${AGENT_PORT_NAME}`, 'add a virtserialport of that name');
}

/**
 * Before its first instruction: fresh. Otherwise it is the process we gated before only if it still carries our mark, an
 * empty block node with a random name: QEMU has no identity of its own that can be asked through its monitor.
 */
async function howFound(
  spec: AttachedVm,
  options: QmpDriverOptions,
  qmp: QmpClient,
  status: string,
): Promise<AdoptedState> {
  const files = runFiles(options.runFolder, spec.vm);
  const known = await readLaunch(files);
  const nodes = parseNodes(await qmp.execute('query-named-block-nodes', { flat: true }), 'query-named-block-nodes');
  const mark = known?.launch.mark ?? null;
  const isMarked = mark !== null && nodes.some((node) => node['node-name'] === mark);
  if (!isMarked) await putMark(spec, options, qmp);
  if (status === 'prelaunch') return { kind: 'fresh' };
  return isMarked ? { kind: 'same-process' } : { kind: 'ungated' };
}

async function putMark(spec: AttachedVm, options: QmpDriverOptions, qmp: QmpClient): Promise<void> {
  const mark = `pq-${randomToken().slice(0, 24)}`;
  const files = runFiles(options.runFolder, spec.vm);
  await forgetLaunch(files);
  await recordLaunch(files, {
    format: 'pratique.launch/1',
    vm: spec.vm,
    specDigest: digestOf(canonicalJson(spec)),
    hostBoot: await hostBootId(),
    accelerator: null,
    uid: null,
    mark,
    launchedAtMs: options.clock.nowMs(),
  });
  await qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': mark, size: 0, 'read-only': true });
}

async function connectIfThere(path: string, clock: Clock): Promise<QmpClient | null> {
  try {
    return await connectQmp({ path, clock });
  } catch (error) {
    if (error instanceof HypervisorError && error.code === 'host-fault/qmp-connect') return null;
    throw error;
  }
}

function isListening(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}
