// What the gate costs an up-to-date VM: agent start to plugged on the real tiny guest, and the host's own share of it.
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buildAgent } from '../../guest-agent/build.ts';
import { HELLO_SEEDED_VERSION } from '../../images/hello-product.ts';
import { buildImage, type GuestImage, guestCommandLine, makeVmDisk } from '../../images/images.ts';
import { DEMO_BRIDGE, type DemoNetwork } from '../../proxy/demo/demo-network.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import type { VmSpec } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import { withBenchHost } from './bench-host.ts';
import type { BenchDaemon } from './gate-daemon.ts';
import { type Distribution, distribution, round, type Target, target } from './gate-figures.ts';
import type { Say } from './gate-fleet.ts';
import type { Recorded } from './gate-recorder.ts';

const VM = 'overhead' as VmId; // It has the form of a VmId.
/** Milliseconds from power-on to plugged, emulated on a busy machine. */
const ROUND_TIMEOUT_MS = 120_000;

/** One boot. */
export type Round = {
  /** The guest's start script says that it starts the agent → QEMU has answered that the link is up. */
  readonly agentStartToPluggedMs: number;
  /** The agent has opened its port → the same. */
  readonly portOpenToPluggedMs: number;
  /** The agent's hello has arrived → the same. */
  readonly helloToPluggedMs: number;
  /** Time in which the host was at work and the guest waited: hello to ask-inventory, inventory to ask-confirm, confirm to plugged. */
  readonly hostShareMs: number;
  readonly hostStepsMs: { readonly hello: number; readonly inventory: number; readonly confirm: number };
};

export type OverheadFigures = {
  readonly rounds: readonly Round[];
  readonly agentStartToPlugged: Distribution;
  readonly portOpenToPlugged: Distribution;
  readonly helloToPlugged: Distribution;
  readonly hostShare: Distribution;
  /** The first round, with a daemon that has just started; it is among the rounds too. */
  readonly coldHostShareMs: number;
  readonly targets: readonly Target[];
};

/** Boots the same up-to-date VM again and again under one daemon. */
export async function benchOverhead(options: { readonly rounds: number }, say: Say): Promise<OverheadFigures> {
  const cacheFolder = defaultCacheFolder();
  await mkdir(cacheFolder, { recursive: true });
  say('overhead: building agent and tiny image (once; cached)');
  const agent = await buildAgent({ cacheFolder, log: silentLog });
  const image = await buildImage({ name: 'tiny', agentPath: agent.path, cacheFolder, log: silentLog });
  return await withBenchHost(
    { image, version: HELLO_SEEDED_VERSION },
    async ({ folder, network, daemon, recordPath, undo }) => {
      undo.push(async () => await powerOff(daemon));
      await daemon.service.addVm(await makeTinySpec(VM, { image, folder, network }), {});
      const rounds: Round[] = [];
      for (let number = 1; number <= options.rounds; number += 1) {
        rounds.push(await bootOnce(daemon, recordPath));
        say(`overhead: round ${number} of ${options.rounds}: ${JSON.stringify(rounds.at(-1))}`);
      }
      return overheadFigures(rounds);
    },
  );
}

/** A tiny guest with a disk of its own, which is as the image is: `hello` in its seeded version. */
export async function makeTinySpec(
  vm: VmId,
  { image, folder, network }: { readonly image: GuestImage; readonly folder: string; readonly network: DemoNetwork },
): Promise<VmSpec> {
  const disk = await makeVmDisk({ image, folder: join(folder, 'disks'), vm });
  return {
    format: 'pratique.vm/1',
    kind: 'managed',
    vm,
    machine: 'q35',
    memoryMiB: image.memoryMiB,
    cpus: 1,
    kernel: {
      image: image.kernel,
      initrd: image.initrd,
      commandLine: guestCommandLine(image, { address: '10.77.0.2/24', chatter: false }),
    },
    disks: [disk],
    nics: [{ id: 'net0', model: 'virtio-net-pci', mac: '52:54:00:77:00:02', bridge: DEMO_BRIDGE }],
    namespace: network.namespace,
  };
}

/** From power-on to plugged, then off again. The daemon is not asked meanwhile: its record tells. */
async function bootOnce(daemon: BenchDaemon, recordPath: string): Promise<Round> {
  const before = (await readRecord(recordPath)).length;
  await daemon.service.startVm(VM);
  const until = systemClock.monotonicMs() + ROUND_TIMEOUT_MS;
  let record: readonly Recorded[] = [];
  while (!record.some(({ what }) => what === 'out:admitted')) {
    if (systemClock.monotonicMs() > until) {
      throw new Error(`the VM was not plugged in: ${(await daemon.service.whyVm(VM)).reason}`);
    }
    await systemClock.sleep(250);
    record = (await readRecord(recordPath)).slice(before);
  }
  await powerOff(daemon);
  return measure(record);
}

async function powerOff({ service }: BenchDaemon): Promise<void> {
  const isOff = async () => ['off', 'staged'].includes((await service.showVm(VM)).state);
  if (await isOff()) return;
  await service.stopVm(VM, { force: true });
  while (!(await isOff())) await systemClock.sleep(50);
}

/** What the recorder has written so far. */
export async function readRecord(path: string): Promise<readonly Recorded[]> {
  const text = await readFile(path, 'utf8').catch(() => '');
  const whole = text.slice(0, text.lastIndexOf('\n') + 1);
  // The cast holds: the recorder wrote these lines.
  return whole.split('\n').flatMap((line) => (line === '' ? [] : [JSON.parse(line) as Recorded]));
}

function measure(record: readonly Recorded[]): Round {
  const at = (what: string): number => record.find((entry) => entry.what === what)?.atMs ?? Number.NaN;
  const plugged = at('in:linked');
  const hostStepsMs = {
    hello: round(at('out:ask-inventory') - at('in:hello')),
    inventory: round(at('out:ask-confirm') - at('in:inventory')),
    confirm: round(plugged - at('in:confirm')),
  };
  return {
    agentStartToPluggedMs: round(plugged - at('in:agent-starts')),
    portOpenToPluggedMs: round(plugged - at('in:port-open')),
    helloToPluggedMs: round(plugged - at('in:hello')),
    hostShareMs: round(hostStepsMs.hello + hostStepsMs.inventory + hostStepsMs.confirm),
    hostStepsMs,
  };
}

function overheadFigures(rounds: readonly Round[]): OverheadFigures {
  const agentStartToPlugged = distribution(rounds.map((each) => each.agentStartToPluggedMs));
  const hostShare = distribution(rounds.map((each) => each.hostShareMs));
  return {
    rounds,
    agentStartToPlugged,
    portOpenToPlugged: distribution(rounds.map((each) => each.portOpenToPluggedMs)),
    helloToPlugged: distribution(rounds.map((each) => each.helloToPluggedMs)),
    hostShare,
    coldHostShareMs: rounds[0]?.hostShareMs ?? Number.NaN,
    targets: [
      target('agent start to plugged, up to date, p50, ms', 300, agentStartToPlugged.p50Ms),
      target("the host's own share of it, p50, ms", 50, hostShare.p50Ms),
    ],
  };
}
