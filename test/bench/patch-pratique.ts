// Pratique in the bench `patch`: one real daemon; each guest from power-on to plugged in and answering with the right versions.
import { mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { HELLO_SEEDED_VERSION } from '../../images/hello-product.ts';
import { type DemoVendor, startDemoVendor } from '../../proxy/demo/demo-vendor.ts';
import type { VmEventRecord } from '../../proxy/service.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import type { EvidenceFacts } from '../../src/model/evidence.ts';
import type { VmId } from '../../src/model/ids.ts';
import { type BenchDaemon, startBenchDaemon } from './gate-daemon.ts';
import {
  GUEST_TIMEOUT_MS,
  type Method,
  type Patched,
  type PatchSite,
  proveOverNetwork,
  type Slot,
  secondsBetween,
  specOf,
  type Update,
} from './patch-site.ts';

const EVENTS_MAX = 500;
/** Milliseconds for a VM to be off after it was told so. */
const STOP_TIMEOUT_MS = 60_000;
const WARM_UP = 'bench-warm-up' as VmId; // It has the form of a VmId.

export function makePratique(): Method {
  let daemon: BenchDaemon | null = null;
  let hello: DemoVendor | null = null;
  const running = (): BenchDaemon => {
    if (daemon === null) throw new Error('assertion failed: the daemon was started by prepare');
    return daemon;
  };
  return {
    name: 'pratique',
    title: 'a VM under Pratique, from power-on to plugged in',
    settings: ['the daemon runs and has checked its vendor, as on any host that is up', 'policy: the defaults'],
    prepare: async (site) => {
      const folder = join(site.folder, 'pratique');
      await mkdir(folder, { mode: 0o711 });
      // The image has a product of another vendor too, which is up to date: without its vendor nothing would be admitted.
      const version = HELLO_SEEDED_VERSION;
      hello = await startDemoVendor({ folder: join(folder, 'hello'), version, behaviour: 'ok', clock: systemClock });
      daemon = await startBenchDaemon({ folder, configuration: configure(site, hello) });
      const checked = await daemon.service.checkVendor(null);
      const ill = checked.find(({ isFresh }) => !isFresh);
      if (ill !== undefined) throw new Error(`the vendor ${ill.vendor} is not fresh: ${ill.trouble?.message}`);
      await warmUp(site, daemon);
    },
    patch: async (site, slot) => await patchOne(site, slot, running()),
    close: async () => {
      if (daemon !== null) await stopAll(daemon.service);
      await daemon?.stop();
      await hello?.close();
    },
  };
}

function configure(site: PatchSite, hello: DemoVendor): Readonly<Record<string, unknown>> {
  const { folder, image, suite, mirror, wanted } = site;
  const suites = [suite, `${suite}-security`];
  return {
    vendors: [{ kind: 'debian-apt', name: 'debian', suites, url: mirror.url }, hello.config],
    diskRoots: [folder, dirname(image.kernel), defaultCacheFolder()],
    ...(wanted.length === 0 ? {} : { policy: { install: 'listed', packages: wanted } }),
  };
}

/** Starts and stops a VM without an agent: the daemon tries KVM at its first VM, once; no update is fetched. */
async function warmUp(site: PatchSite, { service }: BenchDaemon): Promise<void> {
  const slot: Slot = { name: WARM_UP, number: 99 };
  await service.addVm(await specOf(site, slot, { hasAgent: false }), { inspectDisk: false });
  await service.startVm(slot.name);
  await stop(service, slot);
}

type Service = BenchDaemon['service'];

async function patchOne(site: PatchSite, slot: Slot, { service }: BenchDaemon): Promise<Patched> {
  await service.addVm(await specOf(site, slot, { hasAgent: true }), {});
  const startWallMs = systemClock.nowMs();
  const startMs = systemClock.monotonicMs();
  await service.startVm(slot.name);
  const page = proveOverNetwork(site, slot).then(() => systemClock.monotonicMs());
  page.catch(() => {}); // Awaited below; until then a rejection has a handler.
  await settled(site, slot, service);
  if (site.updates.length === 0) {
    site.updates = await installedBy(service, slot);
    if (site.updates.length === 0) throw new Error('nothing was pending: there is nothing to compare');
  }
  const reachedMs = await page;
  const events = await service.pastEvents({ vm: slot.name, afterSeq: 0, limit: EVENTS_MAX });
  await proveOverNetwork(site, slot); // The first time the page may have come before the list of updates was known.
  await stop(service, slot);
  return {
    seconds: secondsBetween(startMs, reachedMs),
    phases: phasesOf(events, startWallMs, secondsBetween(startMs, reachedMs)),
  };
}

/** Waits until the VM is connected. Throws with the reason when it is quarantined, or when the time is up. */
async function settled({ signal }: PatchSite, { name }: Slot, service: Service): Promise<void> {
  const limit = new AbortController();
  const cancel = systemClock.after(GUEST_TIMEOUT_MS, () => limit.abort());
  try {
    const both = AbortSignal.any([limit.signal, signal]);
    for await (const { kind, state } of service.followEvents({ vm: name, afterSeq: 0, signal: both })) {
      if (kind === 'state' && state === 'connected') return;
      if (kind === 'state' && state === 'quarantined') break;
    }
  } catch (error) {
    if (!limit.signal.aborted && !signal.aborted) throw error;
  } finally {
    cancel();
    limit.abort();
  }
  signal.throwIfAborted();
  throw new Error(`${name} was not plugged in: ${(await service.whyVm(name)).reason}`);
}

/** What the record of the opening says was installed. */
async function installedBy(service: Service, { name }: Slot): Promise<readonly Update[]> {
  const entries = await service.auditEntries({ vm: name, afterSeq: 0, limit: EVENTS_MAX });
  const opened = entries.find(({ record }) => record.kind === 'gate-opened');
  // The cast holds: the audit chain's gate-opened records carry the facts as they are.
  const items = opened === undefined ? [] : (opened.record.evidence as EvidenceFacts).items;
  return items.map(({ item, fromVersion, version }) => ({
    name: item.replace(/^[a-z]+\//, '').replace(/:[a-z0-9]+$/, ''),
    from: fromVersion ?? 'none',
    to: version,
  }));
}

/** Seconds in each state, by the daemon's own events, and from the plug to the guest's answer. */
function phasesOf(
  events: readonly VmEventRecord[],
  startMs: number,
  totalSeconds: number,
): Readonly<Record<string, number>> {
  const states = events.filter(({ kind, atMs }) => kind === 'state' && atMs >= startMs);
  const phases: Record<string, number> = {};
  for (const [index, { state, atMs }] of states.entries()) {
    const next = states[index + 1];
    if (next === undefined || state === 'connected') continue;
    phases[state] = Number(((phases[state] ?? 0) + secondsBetween(atMs, next.atMs)).toFixed(2));
  }
  const connected = states.find(({ state }) => state === 'connected');
  if (connected !== undefined) {
    phases.plugged = secondsBetween(startMs, connected.atMs);
    phases.answering = Number((totalSeconds - phases.plugged).toFixed(2));
  }
  return phases;
}

/** VMs outlive their daemon: what a failure or an interruption left running is stopped first. */
async function stopAll(service: Service): Promise<void> {
  for (const { vm, state } of await service.listVms()) {
    if (state !== 'off' && state !== 'staged') await stop(service, { name: vm }).catch(() => {});
  }
}

async function stop(service: Service, { name }: Pick<Slot, 'name'>): Promise<void> {
  await service.stopVm(name, { force: true });
  const until = systemClock.monotonicMs() + STOP_TIMEOUT_MS;
  while (!['off', 'staged'].includes((await service.showVm(name)).state)) {
    if (systemClock.monotonicMs() > until) throw new Error(`${name} does not stop`);
    await systemClock.sleep(50);
  }
}
