// From "the content is decided" to "the guest can read the manifest": a stale tiny guest under a real daemon, its new release already on the host.
import type { GuestImage } from '../../images/images.ts';
import type { VmEventRecord } from '../../proxy/service.ts';
import { systemClock } from '../../src/base/clock.ts';
import type { VmId } from '../../src/model/ids.ts';
import { withBenchHost } from './bench-host.ts';
import { median } from './drive-figures.ts';
import type { BenchDaemon } from './gate-daemon.ts';
import { round } from './gate-figures.ts';
import type { Say } from './gate-fleet.ts';
import { makeTinySpec, readRecord } from './gate-overhead.ts';
import type { Recorded } from './gate-recorder.ts';

const NEW_VERSION = '1.1.0';
/** Milliseconds from power-on to the verified drive, emulated on a busy machine. */
const ROUND_TIMEOUT_MS = 120_000;
const EVENTS_MAX = 1_000;

/** Milliseconds of one VM's drive, step after step. */
export type AttachSteps = {
  /** The plan is known → QEMU is told of the image: fetching (the bytes are in the store), building, leases. */
  readonly build: number;
  /** → QEMU has answered that the device is there. */
  readonly attach: number;
  /** → the offer with the manifest's digest is sent. */
  readonly offer: number;
  /** → the agent says that it has found the drive, mounted it and read the announced manifest on it. */
  readonly guest: number;
};

export type AttachFigures = {
  readonly rounds: readonly AttachSteps[];
  /** Each step's median. */
  readonly steps: AttachSteps;
  readonly decidedToReadableMs: number;
  /** From the first word to QEMU. */
  readonly attachToReadableMs: number;
};

/** Boots one stale VM after the other under one daemon. The first round is left out: the daemon has just started. */
export async function benchAttach(
  image: GuestImage,
  options: { readonly rounds: number },
  say: Say,
): Promise<AttachFigures> {
  return await withBenchHost({ image, version: NEW_VERSION }, async ({ folder, network, daemon, recordPath, undo }) => {
    const rounds: AttachSteps[] = [];
    for (let number = 0; number <= options.rounds; number += 1) {
      const vm = `attach${number}` as VmId; // It has the form of a VmId.
      await daemon.service.addVm(await makeTinySpec(vm, { image, folder, network }), {});
      undo.push(async () => await powerOff(daemon, vm));
      const steps = await bootOnce(daemon, vm, recordPath);
      if (number > 0) rounds.push(steps);
      say(`drive: attached, round ${number} of ${options.rounds}: ${JSON.stringify(steps)}`);
    }
    return attachFigures(rounds);
  });
}

async function bootOnce(daemon: BenchDaemon, vm: VmId, recordPath: string): Promise<AttachSteps> {
  const before = (await readRecord(recordPath)).length;
  await daemon.service.startVm(vm);
  const until = systemClock.monotonicMs() + ROUND_TIMEOUT_MS;
  let record: readonly Recorded[] = [];
  while (!record.some(({ what }) => what === 'in:drive')) {
    if (systemClock.monotonicMs() > until) {
      throw new Error(`the VM was not shown its drive: ${(await daemon.service.whyVm(vm)).reason}`);
    }
    await systemClock.sleep(250);
    record = (await readRecord(recordPath)).slice(before);
  }
  const events = await daemon.service.pastEvents({ vm, afterSeq: 0, limit: EVENTS_MAX });
  await powerOff(daemon, vm);
  return measureSteps(record, events);
}

async function powerOff({ service }: BenchDaemon, vm: VmId): Promise<void> {
  const isOff = async () => ['off', 'staged'].includes((await service.showVm(vm)).state);
  if (await isOff()) return;
  await service.stopVm(vm, { force: true });
  while (!(await isOff())) await systemClock.sleep(50);
}

/** The steps out of the recorder's lines and the daemon's own events; both are in wall time. */
export function measureSteps(
  record: readonly Recorded[],
  events: readonly Pick<VmEventRecord, 'text' | 'atMs'>[],
): AttachSteps {
  const at = (what: string): number => record.find((entry) => entry.what === what)?.atMs ?? Number.NaN;
  const decidedMs = events.find(({ text }) => text.startsWith('missing: '))?.atMs ?? Number.NaN;
  return {
    build: round(at('out:blockdev-add') - decidedMs),
    attach: round(at('in:device-added') - at('out:blockdev-add')),
    offer: round(at('out:offer') - at('in:device-added')),
    guest: round(at('in:drive') - at('out:offer')),
  };
}

/** Medians of the steps, and of their sums in each round. */
export function attachFigures(rounds: readonly AttachSteps[]): AttachFigures {
  const middle = (of: (steps: AttachSteps) => number) => round(median(rounds.map(of)));
  const shown = ({ attach, offer, guest }: AttachSteps) => attach + offer + guest;
  return {
    rounds,
    steps: {
      build: middle((steps) => steps.build),
      attach: middle((steps) => steps.attach),
      offer: middle((steps) => steps.offer),
      guest: middle((steps) => steps.guest),
    },
    decidedToReadableMs: middle((steps) => steps.build + shown(steps)),
    attachToReadableMs: middle(shown),
  };
}
