// Overlay and view of one VM's disks take turns: both move nodes under the same devices.
import { HypervisorError } from '../errors.ts';
import type { DiskOverlay, DiskView } from '../hypervisor.ts';
import { type DiskViewParts, openView } from './disk-view.ts';

/** A merge waits for the end of a view, which is near; a view is refused while an overlay is begun or merged, which may take hours. */
export function takeTurns(
  overlay: DiskOverlay,
  view: DiskViewParts,
): { readonly overlay: DiskOverlay; readonly viewDisk: (disk: string) => Promise<DiskView> } {
  let viewing: Promise<void> | null = null;
  let changing = 0;
  const change = async <T>(work: () => Promise<T>): Promise<T> => {
    while (viewing !== null) await viewing;
    changing += 1;
    try {
      return await work();
    } finally {
      changing -= 1;
    }
  };
  const viewDisk = async (disk: string): Promise<DiskView> => {
    if (changing > 0 || viewing !== null) {
      const what = changing > 0 ? 'its last update is still being merged into it' : 'somebody reads it already';
      throw new HypervisorError('conflict/overlay', `${view.vm}: its disk cannot be read now: ${what}`, {
        next: 'wait until that is over',
      });
    }
    const over = Promise.withResolvers<void>();
    viewing = over.promise;
    const end = (): void => {
      viewing = null;
      over.resolve();
    };
    try {
      const opened = await openView(view, disk);
      return { ...opened, close: () => opened.close().finally(end) };
    } catch (error) {
      end();
      throw error;
    }
  };
  return {
    overlay: {
      ...overlay,
      begin: (spaceBytes) => change(() => overlay.begin(spaceBytes)),
      commit: () => change(overlay.commit),
    },
    viewDisk,
  };
}
