// A real host for benches that time a VM's way: a network, a vendor with one release, and a daemon that records what passes through it.
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { GuestImage } from '../../images/images.ts';
import { type DemoNetwork, makeDemoNetwork } from '../../proxy/demo/demo-network.ts';
import { startDemoVendor } from '../../proxy/demo/demo-vendor.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { type BenchDaemon, startBenchDaemon } from './gate-daemon.ts';
import { undoAll } from './gate-figures.ts';

const RECORDER = join(import.meta.dirname, 'gate-recorder.ts');

export type BenchHost = {
  readonly folder: string;
  readonly network: DemoNetwork;
  readonly daemon: BenchDaemon;
  /** What the daemon's recorder writes. */
  readonly recordPath: string;
  /** What is to be done before the daemon ends, the last first. */
  readonly undo: (() => Promise<unknown>)[];
};

/** Makes the host, lets the work use it, and takes it down. */
export async function withBenchHost<T>(
  options: { readonly image: GuestImage; readonly version: string },
  work: (host: BenchHost) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(process.getuid?.() === 0 ? '/var/tmp/pqb-' : '/tmp/pqb-');
  await chmod(folder, 0o711);
  const undo: (() => Promise<unknown>)[] = [async () => await rm(folder, { recursive: true, force: true })];
  try {
    const network = await makeDemoNetwork({ folder, clock: systemClock, prefix: 'pqbench' });
    undo.push(network.close);
    const { version } = options;
    const vendor = await startDemoVendor({
      folder: join(folder, 'vendor'),
      version,
      behaviour: 'ok',
      clock: systemClock,
    });
    undo.push(vendor.close);
    const recordPath = join(folder, 'record');
    const daemon = await startBenchDaemon({
      folder,
      configuration: {
        vendors: [vendor.config],
        diskRoots: [folder, dirname(options.image.kernel), defaultCacheFolder()],
      },
      nodeFlags: ['--import', RECORDER],
      env: { PRATIQUE_BENCH_RECORD: recordPath },
    });
    undo.push(daemon.stop);
    await daemon.service.checkVendor(null);
    return await work({ folder, network, daemon, recordPath, undo });
  } finally {
    await undoAll(undo);
  }
}
