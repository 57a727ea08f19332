// A Debian root with the agent, an archive of our own that it trusts, and the vendor over it: what tests of Debian guests without a VM need.
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { makeHttpFetch } from '../../src/base/http-fetch.ts';
import { silentLog } from '../../src/base/log.ts';
import { makeDebianVendor } from '../../src/vendor/debian-apt/index.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import { type DebianArchive, makeDebianArchive } from '../fakes/debian-archive.ts';
import { startHttpServer } from '../fakes/http-server.ts';
import { DebianRoot } from './debian-root.ts';

/** The one suite of the archive. */
export const SCENE_SUITE = 'bookworm-security';
const DAY_MS = 24 * 60 * 60 * 1000;

export type DebianScene = {
  readonly scratch: string;
  readonly archive: DebianArchive;
  readonly vendor: Vendor;
  /** Not started yet. */
  readonly root: DebianRoot;
  readonly close: () => Promise<void>;
};

/** Opens the scene; nothing is published yet. The first of `keys` signs what the guest and the vendor trust. */
export async function openDebianScene(
  options: { readonly clock?: Clock; readonly keys?: readonly [string, ...string[]] } = {},
): Promise<DebianScene> {
  const { clock = systemClock, keys = ['archive'] } = options;
  const scratch = await mkdtemp(join(tmpdir(), 'pratique-debian-'));
  const archive = await makeDebianArchive(scratch, keys);
  const server = await startHttpServer(archive.folder);
  const http = makeHttpFetch({ clock: systemClock });
  const keyring = await archive.keyring(keys[0]);
  const vendor = await makeDebianVendor(
    { name: 'debian', suites: [SCENE_SUITE], url: server.url, keyring, arch: 'amd64' },
    { folder: join(scratch, 'vendor'), http, clock, metadataAgeMaxMs: DAY_MS, log: silentLog },
  );
  const root = await DebianRoot.make();
  // The guest's own keyring is what its apt goes by.
  await cp(keyring, root.path('etc/apt/trusted.gpg.d/archive.gpg'));
  return {
    scratch,
    archive,
    vendor,
    root,
    close: async () => {
      await root.remove();
      await vendor.close();
      await http.close();
      await server.close();
      await archive.close();
      await rm(scratch, { recursive: true, force: true });
    },
  };
}
