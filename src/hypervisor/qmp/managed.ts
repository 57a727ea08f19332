// Managed VMs: we start their QEMU, stopped, unplugged and fenced, and find it again after our own restart.

import { digestOf } from '../../base/digest.ts';
import { canonicalJson } from '../../base/digest-text.ts';
import { hostBootId, isAlive, type ProcessId } from '../../base/process-id.ts';
import type { DiskImage } from '../../model/disk-image.ts';
import type { VmId } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';
import type { AdoptedState, RunningVm, VmEvent } from '../hypervisor.ts';
import { HOST_NAMESPACE } from '../namespace.ts';
import { gatedTapsOf, makeTaps, removeTaps, tapsOf } from '../network.ts';
import { gatedNics, type ManagedVm } from '../vm-spec.ts';
import type { Accelerator } from './accel.ts';
import { parseChardevs, parseStatus } from './answers.ts';
import {
  AGENT_PORT_ID,
  type CommandLineParts,
  commandLine,
  diskDevice,
  diskNode,
  driveSlots,
  mediaDevice,
  nicDevice,
} from './command-line.ts';
import { giveTo, pathUnderRoots, resolveImage } from './disk-paths.ts';
import { takeTurns } from './disk-turns.ts';
import { closeView, type DiskViewParts, removeSocket, viewSocketFolder } from './disk-view.ts';
import { launch } from './launch.ts';
import { makeMachine } from './machine.ts';
import type { Medium } from './media.ts';
import type { QmpDriverOptions } from './options.ts';
import { makeOverlay } from './overlay.ts';
import { overlayFate, overlayFiles, settleOverlay, type WritableDisk } from './overlay-files.ts';
import { connectQmp, type QmpClient } from './qmp-client.ts';
import { forgetLaunch, type RunFiles, readLaunch, recordLaunch, runFiles } from './run-files.ts';

export type ManagedContext = QmpDriverOptions & { readonly chooseAccelerator: () => Promise<Accelerator> };

/** Starts the VM: fence, taps behind it, QEMU stopped before the first instruction, links down. Leaves nothing behind when it fails. */
export async function startManaged(spec: ManagedVm, context: ManagedContext): Promise<RunningVm> {
  const files = runFiles(context.runFolder, spec.vm);
  await refuseSecond(spec.vm, files);
  await refuseUnsettled(spec.vm, context);
  const paths = await resolvePaths(spec, context.diskRoots);
  const namespace = spec.namespace ?? HOST_NAMESPACE;
  const fence = await context.fenceFor(namespace);
  const uid = (await context.uidFor?.(spec.vm)) ?? null;
  const accelerator = await context.chooseAccelerator();
  const seedPath = spec.cloudInit === true ? ((await context.seedFor?.(spec.vm, uid)) ?? null) : null;
  await recordLaunch(files, {
    format: 'pratique.launch/1',
    vm: spec.vm,
    specDigest: specDigest(spec),
    hostBoot: await hostBootId(),
    accelerator,
    uid,
    mark: null,
    launchedAtMs: context.clock.nowMs(),
  });
  await makeTaps(spec, namespace, fence, uid);
  try {
    if (uid !== null) await giveDisks(spec, paths, uid);
    const qemuBinary = context.qemuBinary ?? 'qemu-system-x86_64';
    const command = commandLine({
      spec,
      qemuBinary,
      accelerator,
      diskPaths: paths.disks,
      backings: paths.backings,
      kernel: paths.kernel,
      seedPath,
    });
    const taps = tapsOf(spec);
    const qmp = await launch({ vm: spec.vm, namespace, files, taps, uid, accelerator, command, clock: context.clock });
    const machine = await makeManaged(spec, context, files, paths, qmp, { kind: 'fresh' });
    await machine.lowerLinks();
    return machine;
  } catch (error) {
    await endLeftover(files);
    await removeTaps(
      namespace,
      tapsOf(spec).map((tap) => tap.name),
    );
    await forgetLaunch(files);
    throw error;
  }
}

/** Connects to the QEMU we started before; null when it has ended, and then its taps are gone too. Changes nothing about links and fence. */
export async function adoptManaged(spec: ManagedVm, context: ManagedContext): Promise<RunningVm | null> {
  const files = runFiles(context.runFolder, spec.vm);
  const known = await readLaunch(files);
  if (known === null) return null;
  const isOfThisBoot = known.launch.hostBoot === (await hostBootId());
  if (!isOfThisBoot || known.process === null || !(await isAlive(known.process))) {
    await cleanUp(spec, context, files);
    return null;
  }
  if (known.launch.specDigest !== specDigest(spec)) {
    throw new HypervisorError('conflict/spec', `${spec.vm}: it runs with another spec than the one given`, {
      next: 'end the VM, then start it with the new spec',
    });
  }
  const paths = await resolvePaths(spec, context.diskRoots);
  const qmp = await connectQmp({ path: files.qmpSocket, clock: context.clock });
  try {
    // A daemon that ended in the middle of a reset may have left the other action set.
    await qmp.execute('set-action', { reboot: 'shutdown', shutdown: 'pause' });
    const { status } = parseStatus(await qmp.execute('query-status'), 'query-status');
    const adopted: AdoptedState = status === 'prelaunch' ? { kind: 'fresh' } : { kind: 'same-process' };
    const missed = await missedEvents(qmp, status);
    return await makeManaged(spec, context, files, paths, qmp, adopted, missed);
  } catch (error) {
    qmp.close();
    throw error;
  }
}

/** The digest by which a spec is known. */
export function specDigest(spec: ManagedVm) {
  return digestOf(canonicalJson(spec));
}

/**
 * What happened while nobody listened. A VM stopped in `shutdown` reset itself or powered off: QEMU does not say which
 * afterwards. Taken as a reset: it boots again behind a closed gate, and a VM that asked to come back does.
 */
async function missedEvents(qmp: QmpClient, status: string): Promise<readonly VmEvent[]> {
  const chardevs = parseChardevs(await qmp.execute('query-chardev'), 'query-chardev');
  const isOpen = chardevs.find((one) => one.label === 'pratique-channel')?.['frontend-open'] === true;
  const port: VmEvent = { kind: 'agent-port', isOpen };
  return status === 'shutdown' ? [{ kind: 'reset', isStopped: true }, port] : [port];
}

async function makeManaged(
  spec: ManagedVm,
  context: ManagedContext,
  files: RunFiles,
  paths: Paths,
  qmp: QmpClient,
  adopted: AdoptedState,
  missed: readonly VmEvent[] = [],
): Promise<RunningVm> {
  const known = await readLaunch(files);
  const process = known?.process ?? null;
  if (process === null) {
    throw new HypervisorError(
      'host-fault/launch-record',
      `${spec.vm}: QEMU runs, but ${files.pidFile} does not name it`,
    );
  }
  const uid = known?.launch.uid ?? null;
  const overlay = makeOverlay({
    qmp,
    clock: context.clock,
    files: overlayFiles(context.overlayFolder, spec.vm),
    disks: writableDisks(spec, paths),
    uid,
  });
  const viewParts = viewPartsOf(spec, context, qmp, uid);
  // Of a daemon that ended while it read.
  await closeView(viewParts);
  return makeMachine({
    vm: spec.vm,
    namespace: spec.namespace ?? HOST_NAMESPACE,
    taps: gatedTapsOf(spec),
    nicDevices: gatedNics(spec.nics).map((nic) => nicDevice(nic.id)),
    channelSocket: files.channelSocket,
    adopted,
    missed,
    qmp,
    slots: driveSlots(spec),
    media: paths.media,
    ...takeTurns(overlay, viewParts),
    agentPort: AGENT_PORT_ID,
    isManaged: true,
    hasEnded: async () => !(await isAlive(process)),
    kill: () => killProcess(process),
    onEnded: () => cleanUp(spec, context, files),
    clock: context.clock,
    log: context.log,
    ...(context.unplugTimeoutMs === undefined ? {} : { unplugTimeoutMs: context.unplugTimeoutMs }),
  });
}

function viewPartsOf(spec: ManagedVm, context: ManagedContext, qmp: QmpClient, uid: number | null): DiskViewParts {
  const { clock, overlayFolder, runFolder } = context;
  const devices = new Map(spec.disks.map(({ id }) => [id, diskDevice(id)]));
  const socketFolder = viewSocketFolder(runFolder, spec.vm);
  return { vm: spec.vm, qmp, clock, uid, spaceFolder: overlayFolder, socketFolder, devices };
}

/** The disks that the guest can write, by the names of their nodes on QEMU's command line. */
function writableDisks(spec: ManagedVm, paths: Paths): readonly WritableDisk[] {
  return spec.disks.flatMap((disk, index) => {
    const path = paths.disks[index];
    if (path === undefined || disk.readOnly === true) return [];
    const backing = paths.backings[index];
    const base = { path, format: disk.format, ...(backing === undefined ? {} : { backing }) };
    return [{ node: diskNode(index), base }];
  });
}

/** Merges or throws away the overlay of a VM that is off. */
export async function settleManaged(spec: ManagedVm, context: ManagedContext) {
  await refuseSecond(spec.vm, runFiles(context.runFolder, spec.vm));
  return await settleOverlay(overlayFiles(context.overlayFolder, spec.vm));
}

/** Two writers of one disk would be its end: what an accepted overlay holds is merged before anything starts from the disk. */
async function refuseUnsettled(vm: VmId, context: ManagedContext): Promise<void> {
  if ((await overlayFate(overlayFiles(context.overlayFolder, vm))) === 'none') return;
  throw new HypervisorError('conflict/overlay', `${vm}: its disk overlay was neither merged nor thrown away`);
}

type Paths = {
  readonly disks: readonly string[];
  readonly backings: readonly (DiskImage | undefined)[];
  readonly media: readonly Medium[];
  readonly kernel: CommandLineParts['kernel'];
};

async function resolvePaths(spec: ManagedVm, roots: readonly string[]): Promise<Paths> {
  const resolve = (field: string, path: string) => pathUnderRoots({ vm: spec.vm, field, path }, roots);
  const images: DiskImage[] = [];
  for (const disk of spec.disks) images.push(await resolveImage(spec.vm, `disks.${disk.id}`, disk, roots));
  const disks = images.map((image) => image.path);
  const backings = images.map((image) => image.backing);
  const media: Medium[] = [];
  for (const medium of spec.media ?? []) {
    media.push({ device: mediaDevice(medium.id), path: await resolve(`media.${medium.id}`, medium.path) });
  }
  if (spec.kernel === undefined) return { disks, backings, media, kernel: null };
  const image = await resolve('kernel.image', spec.kernel.image);
  const initrd = spec.kernel.initrd === undefined ? null : await resolve('kernel.initrd', spec.kernel.initrd);
  return { disks, backings, media, kernel: { image, initrd, commandLine: spec.kernel.commandLine } };
}

async function giveDisks(spec: ManagedVm, paths: Paths, uid: number): Promise<void> {
  for (const [index, disk] of spec.disks.entries()) {
    const path = paths.disks[index];
    if (path !== undefined && disk.readOnly !== true) await giveTo(uid, path);
  }
}

async function refuseSecond(vm: VmId, files: RunFiles): Promise<void> {
  const known = await readLaunch(files);
  if (known === null || known.process === null || !(await isAlive(known.process))) return;
  throw new HypervisorError('conflict/vm-runs', `${vm}: its QEMU runs already (pid ${known.process.pid})`, {
    next: 'adopt it, or end it first',
  });
}

/** Ends a QEMU of a start that failed half-way. */
async function endLeftover(files: RunFiles): Promise<void> {
  const known = await readLaunch(files);
  if (known?.process != null && (await isAlive(known.process))) killProcess(known.process);
}

function killProcess({ pid }: ProcessId): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It ended by itself between our look and the signal.
  }
}

/** After the end: nobody with these names may be admitted any more, and the taps go. */
async function cleanUp(spec: ManagedVm, context: ManagedContext, files: RunFiles): Promise<void> {
  const namespace = spec.namespace ?? HOST_NAMESPACE;
  const names = tapsOf(spec).map((tap) => tap.name);
  const fence = await context.fenceFor(namespace);
  await fence.ensure();
  await fence.expel(gatedTapsOf(spec).map((tap) => tap.name));
  await removeTaps(namespace, names);
  await removeSocket({ socketFolder: viewSocketFolder(context.runFolder, spec.vm) });
  await forgetLaunch(files);
}
