// The main job, for real: a stale VM from power-on to plugged in, with the frames counted where they would arrive.
import { access, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { buildAgent } from '../../guest-agent/build.ts';
import { HELLO_SEEDED_VERSION, type HelloBehaviour } from '../../images/hello-product.ts';
import { type AnyImage, buildImage } from '../../images/images.ts';
import { makeVmParts } from '../../images/vm-parts.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { ERROR_FAMILIES, EXIT_DONE, EXIT_FAILED, EXIT_QUARANTINED, PratiqueError } from '../../src/base/errors.ts';
import { makeLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import type { VmSpec } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { VendorConfig } from '../../src/vendor/registry.ts';
import type { Service, VmEventRecord } from '../service.ts';
import { type Probing, STALE_ADDRESS, startProbing, writeGuestConfiguration } from './configuration.ts';
import { makeDemoDaemon } from './demo-daemon.ts';
import { DEMO_LICENSE, leaseWords, startDemoLicense } from './demo-license.ts';
import { DEMO_BRIDGE, type DemoNetwork, makeDemoNetwork, waitUntil } from './demo-network.ts';
import { type DemoVendor, startDemoVendor } from './demo-vendor.ts';
import { type DemoDocument, writeDocument } from './document.ts';
import { followRun } from './follow-run.ts';
import { debianVendor, pendingUpdates, remarksOn } from './pending.ts';
import { brokenPromises } from './promises.ts';
import { type DemoGuest, type LicenseFate, SCENARIO_TABLE, type Scenario, type ScenarioName } from './scenarios.ts';
import { askGuest } from './served.ts';

export type DemoOptions = {
  readonly guest: DemoGuest;
  readonly scenario: ScenarioName;
  /** Keep the folder with disks, logs and capture. */
  readonly keep: boolean;
  /** Shows one event of the run. */
  readonly onEvent?: (event: VmEventRecord) => void;
  /** Shows a line of progress before and after the run. */
  readonly say: (line: string) => void;
  /** Ends the demonstration early, with everything cleaned up. */
  readonly signal: AbortSignal;
};

export type DemoResult = { readonly document: DemoDocument; readonly exitCode: number };

const NEW_VERSION = '1.1.0';
const FORGING_AGENT = join(import.meta.dirname, 'forging-agent.ts');
const SUBJECT = { vm: 'demo' as VmId, mac: '52:54:00:77:00:02', address: '10.77.0.2' }; // "demo" has the form of a VmId.
const CONTROL = { vm: 'control' as VmId, mac: '52:54:00:77:00:03', address: '10.77.0.3' }; // So has "control".
type Guest = typeof SUBJECT;

/** Milliseconds for the whole run: a Debian guest under emulation installs for minutes. */
const RUN_TIMEOUT_MS = {
  tiny: 180_000,
  debian: 1_200_000,
  'debian-systemd': 3_600_000,
  'debian-cloud': 3_600_000,
} as const;
/** Seconds: systemd on an emulated processor that others use too takes minutes to start and to shut down. */
const SYSTEMD_DEADLINES = { booting: 900, rebooting: 600 };
/** Frames that prove the control's point; one would do, a few show that it goes on. */
const CONTROL_FRAMES = 3;
const CONTROL_TIMEOUT_MS = 90_000;

/** Runs one scenario. Throws when it could not be run at all; a broken promise is exit code 1 with the document. */
export async function runDemo(options: DemoOptions): Promise<DemoResult> {
  const scenario = SCENARIO_TABLE[options.scenario];
  if (!scenario.guests.includes(options.guest)) {
    throw new PratiqueError(
      'usage/scenario',
      `the guest ${options.guest} cannot show the scenario ${options.scenario}`,
      {
        next: `add --guest ${scenario.guests.join(' or ')}`,
      },
    );
  }
  options.say(`${options.scenario}: ${scenario.title}`);
  await setUpHost(options.say);
  const image = await prepareImage(options, scenario);
  const folder = await mkdtemp(join(process.getuid?.() === 0 ? '/var/tmp' : tmpdir(), 'pratique-demo-'));
  await runCommand(['chmod', '0711', folder], { purpose: 'opening the way to the disks' });
  const network = await makeDemoNetwork({ folder, clock: systemClock });
  try {
    return await runScenario({ ...options, image, folder, network, plan: scenario });
  } finally {
    await network.close();
    if (options.keep) options.say(`kept: ${folder}`);
    else await rm(folder, { recursive: true, force: true });
  }
}

/** In a checkout, installs the Debian packages that are missing; an installed Pratique has them as dependencies. */
async function setUpHost(say: (line: string) => void): Promise<void> {
  const script = join(import.meta.dirname, '../../scripts/setup.sh');
  const isCheckout = await access(script).then(
    () => true,
    () => false,
  );
  if (!isCheckout) return;
  const said = await runCommand(['sh', script], { purpose: 'checking the Debian packages', timeoutMs: 900_000 });
  if (said.trim() !== '') say(said.trim());
}

async function prepareImage({ guest, say }: DemoOptions, scenario: Scenario): Promise<AnyImage> {
  const log = makeLog('warn');
  const cacheFolder = defaultCacheFolder();
  await mkdir(cacheFolder, { recursive: true });
  say('building the guest agent (once; cached)');
  const entry = scenario.agent === 'forging' ? { entry: FORGING_AGENT } : {};
  const agent = await buildAgent({ cacheFolder, log, ...entry });
  const name = scenario.bootsNewKernel ? 'debian-systemd' : guest;
  say(`building the ${name} image (once; cached)`);
  return await buildImage({
    name,
    agentPath: agent.path,
    cacheFolder,
    log,
    onProgress: (step) => say(`  ${step}`),
  });
}

type Stage = DemoOptions & {
  readonly image: AnyImage;
  readonly folder: string;
  readonly network: DemoNetwork;
  readonly plan: Scenario;
};

/** Who offers the updates of a run, and what has to be said about that. */
type Vendors = {
  readonly configs: readonly VendorConfig[];
  readonly remarks: readonly string[];
  /** Of the product hello; empty where nobody offers it. */
  readonly origin: string;
  readonly close: () => Promise<void>;
};

async function runScenario(stage: Stage): Promise<DemoResult> {
  const { folder, plan, say } = stage;
  const vendors = await prepareVendors(stage);
  for (const remark of vendors.remarks) say(remark);
  const { license: fate } = plan;
  const license = fate === null ? null : await startDemoLicense({ folder, fate, clock: systemClock, say });
  // A unix socket's path is short; the run folder is not below the long temporary folder.
  const runFolder = await mkdtemp(join(process.getuid?.() === 0 ? '/run' : tmpdir(), 'pq'));
  const daemon = await makeDemoDaemon({
    folder,
    runFolder,
    clock: systemClock,
    configuration: {
      ...configure(stage, vendors),
      // Never what this machine configures its own guests with.
      guestConfigFolder: plan.isConfigured ? await writeGuestConfiguration(folder, SUBJECT) : join(folder, 'guests'),
    },
  });
  let probing: Probing | null = null;
  try {
    await daemon.start();
    const { service } = daemon;
    say('checking the vendor');
    await service.checkVendor(null);
    await license?.add(service, vendors.origin);
    await service.addVm(await makeSpec(stage, SUBJECT), plan.policy);
    await license?.strike(service, SUBJECT.vm);
    probing = plan.isConfigured ? startProbing(stage.network, SUBJECT.address, systemClock) : null;
    const run = await followRun({
      daemon,
      vm: SUBJECT.vm,
      clock: systemClock,
      timeoutMs: RUN_TIMEOUT_MS[stage.image.name],
      killDaemonIn: plan.killDaemonIn,
      signal: stage.signal,
      onEvent: stage.onEvent ?? (() => {}),
    });
    const isConnected = run.state === 'connected';
    const probes = (await probing?.end(isConnected)) ?? null;
    const served = isConnected
      ? await askGuest({ network: stage.network, image: stage.image.name, address: SUBJECT.address })
      : null;
    const frames = await stage.network.framesFrom(SUBJECT.mac);
    const { guest, scenario, image } = stage;
    const { remarks } = vendors;
    const seen = await writeDocument({
      vm: SUBJECT.vm,
      guest,
      scenario,
      plan,
      image,
      run,
      service,
      frames,
      served,
      probed: probes === null ? null : { address: SUBJECT.address, probes },
      remarks,
    });
    await service.stopVm(SUBJECT.vm, { force: true });
    say('positive control: the same guest with the gate overridden');
    return conclude(stage, { ...seen, framesControl: await runControl(stage, service) });
  } finally {
    await probing?.end(false);
    await stopAll(daemon.service);
    await daemon.stop();
    await vendors.close();
    await license?.close();
    if (stage.keep) say(`kept: ${runFolder}`);
    else await rm(runFolder, { recursive: true, force: true });
  }
}

/** The product hello is signed here, a Debian guest's packages by Debian. Its pending updates are counted first. */
async function prepareVendors(stage: Stage): Promise<Vendors> {
  const { image, folder, plan, say } = stage;
  if (image.debian === null) return vendorsOf([], await startHelloVendor(folder, plan.release, plan.license), []);
  say('asking the Debian archive what is pending');
  const pending = await pendingUpdates({
    debian: image.debian,
    dataFolder: join(folder, 'data'),
    clock: systemClock,
    log: makeLog('warn'),
  });
  const debian = debianVendor(image.debian);
  const remarks = remarksOn(pending, plan);
  // The image with a boot loader has no such product: its scenario lives on Debian's kernel alone.
  if (plan.bootsNewKernel) return vendorsOf([debian], null, remarks);
  // On a day with enough updates hello is up to date: without its vendor nothing that has it would be admitted.
  return vendorsOf([debian], await startHelloVendor(folder, remarks.length > 0 ? plan.release : null), remarks);
}

function vendorsOf(others: readonly VendorConfig[], own: DemoVendor | null, remarks: readonly string[]): Vendors {
  return {
    configs: own === null ? others : [...others, own.config],
    remarks,
    origin: own?.origin ?? '',
    close: async () => await own?.close(),
  };
}

/** A vendor whose newest release of hello behaves so; null: it has nothing newer than what the images have. */
async function startHelloVendor(
  folder: string,
  release: HelloBehaviour | null,
  license: LicenseFate | null = null,
): Promise<DemoVendor> {
  return await startDemoVendor({
    folder: join(folder, 'vendor'),
    version: release === null ? HELLO_SEEDED_VERSION : NEW_VERSION,
    behaviour: release ?? 'ok',
    clock: systemClock,
    ...(license === null ? {} : { license: DEMO_LICENSE }),
  });
}

/** The daemon's configuration: the vendors, where disks lie, and a short wait for an agent that will never come, a long one for systemd. */
function configure({ folder, image, plan }: Stage, vendors: Vendors): Record<string, unknown> {
  return {
    vendors: vendors.configs,
    diskRoots: [folder, ...image.disks.map(({ path }) => dirname(path)), defaultCacheFolder()],
    ...(plan.agent === 'absent' ? { deadlines: { booting: 15 } } : {}),
    ...(plan.bootsNewKernel ? { deadlines: SYSTEMD_DEADLINES } : {}),
    ...(plan.license === null ? {} : leaseWords(plan.license)),
  };
}

async function makeSpec(stage: Stage, guest: Guest): Promise<VmSpec> {
  const { image, folder, network, plan } = stage;
  const isSilent = plan.agent === 'absent' || guest === CONTROL;
  const address = plan.isConfigured && guest === SUBJECT ? STALE_ADDRESS : guest.address;
  const wishes = { address: `${address}/24`, chatter: true, ...(isSilent ? { mode: 'no-agent' as const } : {}) };
  return {
    format: 'pratique.vm/1',
    kind: 'managed',
    vm: guest.vm,
    machine: 'q35',
    cpus: 1,
    ...(await makeVmParts({ image, folder: join(folder, 'disks'), vm: guest.vm, wishes })),
    nics: [{ id: 'net0', model: 'virtio-net-pci', mac: guest.mac, bridge: DEMO_BRIDGE }],
    namespace: network.namespace,
  };
}

/** The same guest, admitted from the start by an audited override: its frames must arrive, or the count of zero says nothing. */
async function runControl(stage: Stage, service: Service): Promise<number> {
  await service.addVm(await makeSpec(stage, CONTROL), {});
  await service.startVm(CONTROL.vm);
  const isRunning = await waitUntil(
    systemClock,
    CONTROL_TIMEOUT_MS,
    async () => (await service.showVm(CONTROL.vm)).state === 'booting',
  );
  if (!isRunning) throw new PratiqueError('internal/control', 'the positive control did not start');
  await service.admitVm(CONTROL.vm, { reason: 'positive control of the demonstration', actor: 'demo' });
  await waitUntil(systemClock, CONTROL_TIMEOUT_MS, async () => {
    stage.signal.throwIfAborted();
    return (await stage.network.framesFrom(CONTROL.mac)).length >= CONTROL_FRAMES;
  });
  return (await stage.network.framesFrom(CONTROL.mac)).length;
}

function conclude(stage: Stage, document: DemoDocument): DemoResult {
  const { plan, say } = stage;
  const broken = brokenPromises(plan, document);
  for (const promise of broken) say(`BROKEN: ${promise}`);
  if (broken.length > 0) return { document, exitCode: EXIT_FAILED };
  say(
    plan.ends === 'connected'
      ? 'kept its promise: plugged in, up to date, no frame before'
      : 'kept its promise: stayed unplugged, no frame left',
  );
  if (plan.ends === 'connected') return { document, exitCode: EXIT_DONE };
  // Not the VM's fault: what it lacks is a license.
  return { document, exitCode: plan.license === null ? EXIT_QUARANTINED : ERROR_FAMILIES.refused.exitCode };
}

async function stopAll(service: Service): Promise<void> {
  const vms = await service.listVms().catch(() => []);
  for (const { vm, state } of vms) {
    if (state !== 'off' && state !== 'staged') await service.stopVm(vm, { force: true }).catch(() => {});
  }
  await waitUntil(systemClock, 20_000, async () => {
    const left = await service.listVms().catch(() => []);
    return left.every((view) => view.state === 'off' || view.state === 'staged');
  });
}
