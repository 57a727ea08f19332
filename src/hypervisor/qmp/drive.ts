// The update drive: shows an image read-only and takes it away again. What is attached is read from QEMU each time, so that it is
// right after our own restart too, and a step that was broken off is put right by the next one.
import type { Clock } from '../../base/clock.ts';
import { DEVICE_UNPLUG_TIMEOUT_MS } from '../../base/limits.ts';
import { DRIVE_FRONT_ENDS, type DriveFrontEnd, type DriveSource } from '../../model/drive.ts';
import type { VmId } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';
import type { DriveImage } from '../hypervisor.ts';
import { parseStatus } from './answers.ts';
import {
  addNodes,
  exchangeImage,
  fileOf,
  hasImage,
  imageInUse,
  type OpenImage,
  removeNodes,
  withdrawImage,
} from './drive-nodes.ts';
import {
  closeTray,
  type DriveSlots,
  emptyTray,
  findPlace,
  hasPlace,
  putIn,
  requirePlace,
  unplug,
  watchSigns,
} from './drive-places.ts';
import type { QmpClient } from './qmp-client.ts';

export type Drive = {
  readonly frontEnds: readonly DriveFrontEnd[];
  readonly attach: (image: DriveImage) => Promise<void>;
  readonly reopen: (source: DriveSource) => Promise<void>;
  readonly detach: () => Promise<{ readonly surprise: boolean }>;
  readonly isAttached: () => Promise<boolean>;
};

export type DriveOptions = {
  readonly vm: VmId;
  readonly qmp: QmpClient;
  readonly slots: DriveSlots;
  readonly clock: Clock;
  /** How long a guest may hold on to the drive. */
  readonly unplugTimeoutMs?: number;
};

/** The drive of one QEMU. */
export function makeDrive(options: DriveOptions): Drive {
  const { vm, qmp, slots, clock } = options;
  const signs = watchSigns(qmp);

  /** Takes the drive away from wherever it is. */
  const takeOut = async (timeoutMs: number): Promise<{ readonly surprise: boolean }> => {
    const place = await findPlace(qmp, slots);
    if (place === 'tray' && slots.tray !== null) {
      const { surprise } = await emptyTray({ qmp, tray: slots.tray, clock, timeoutMs });
      await removeNodes(qmp, clock);
      return { surprise };
    }
    if (place === null) {
      await removeNodes(qmp, clock);
      return { surprise: false };
    }
    const { isGone, surprise } = await unplug({ qmp, signs, clock, timeoutMs });
    // The next reset removes what the guest keeps.
    if (isGone) await removeNodes(qmp, clock);
    else await withdrawImage(qmp);
    return { surprise };
  };

  const isShown = async (source: DriveSource): Promise<boolean> => {
    const present = await imageInUse(qmp);
    const place = await findPlace(qmp, slots);
    if (place === null) return false;
    if (present === null) throw heldError(vm);
    if (present.file !== fileOf(source)) throw otherError(vm, present);
    return true;
  };

  return {
    frontEnds: DRIVE_FRONT_ENDS.filter((frontEnd) => hasPlace(frontEnd, slots)),
    isAttached: async () => {
      if ((await findPlace(qmp, slots)) !== null) return await hasImage(qmp);
      // An image that a broken-off step left open is no drive: no guest sees it.
      await removeNodes(qmp, clock);
      return false;
    },
    attach: async ({ source, frontEnd }) => {
      requirePlace(vm, frontEnd, slots);
      if (await isShown(source)) {
        await closeTray(qmp);
        return;
      }
      await removeNodes(qmp, clock);
      try {
        await addNodes(qmp, source);
        await putIn(qmp, frontEnd, slots);
      } catch (error) {
        await takeOut(0);
        throw error;
      }
    },
    reopen: async (source) => {
      const present = await imageInUse(qmp);
      if (present === null || (await findPlace(qmp, slots)) === null) {
        throw new HypervisorError('conflict/drive', `${vm}: there is no drive to open anew`, { next: 'attach it' });
      }
      await exchangeImage(qmp, present, source);
    },
    detach: async () => {
      const { running } = parseStatus(await qmp.execute('query-status'), 'query-status');
      // A stopped guest cannot let go.
      return await takeOut(running ? (options.unplugTimeoutMs ?? DEVICE_UNPLUG_TIMEOUT_MS) : 0);
    },
  };
}

function otherError(vm: VmId, present: OpenImage): HypervisorError {
  return new HypervisorError('conflict/drive', `${vm}: another drive (${present.file}) is attached`, {
    next: 'detach it first',
  });
}

function heldError(vm: VmId): HypervisorError {
  return new HypervisorError('host-fault/drive-held', `${vm}: the guest still holds the drive that was taken away`, {
    next: 'reset the VM',
  });
}
