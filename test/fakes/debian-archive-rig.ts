// A Debian vendor over a fake archive that is served by a real HTTP server: what its tests publish, and who asks.
import assert from 'node:assert/strict';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { type HttpFetchDeps, makeHttpFetch } from '../../src/base/http-fetch.ts';
import { silentLog } from '../../src/base/log.ts';
import type { InstalledProduct, Inventory } from '../../src/model/inventory.ts';
import { type DebianVendorConfig, makeDebianVendor } from '../../src/vendor/debian-apt/index.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import { type DebianArchive, makeDebianArchive, type SuiteSpec } from './debian-archive.ts';
import { type FakeHttpServer, startHttpServer } from './http-server.ts';

export const NOON = Date.parse('Sat, 10 Jan 2026 12:00:00 UTC');
export const HOUR_MS = 3_600_000;
export const MAIN: SuiteSpec = {
  suite: 'bookworm',
  packages: [
    { name: 'jq', version: '1.6-2+deb12u2' },
    { name: 'tzdata', version: '2026a-0', arch: 'all' },
  ],
  date: 'Sat, 10 Jan 2026 10:00:00 UTC',
};
export const SECURITY: SuiteSpec = {
  suite: 'bookworm-security',
  packages: [{ name: 'jq', version: '1.6-2+deb12u3' }],
  date: 'Sat, 10 Jan 2026 10:00:00 UTC',
  validUntil: 'Sat, 17 Jan 2026 10:00:00 UTC',
};
/** Newer than everything else that the tests publish: what an honest archive has afterwards. */
const HONEST: SuiteSpec = {
  ...MAIN,
  packages: [{ name: 'jq', version: '1.6-2+deb12u7' }],
  date: 'Sat, 10 Jan 2026 12:50:00 UTC',
};

export type Rig = {
  readonly vendor: Vendor;
  readonly clock: Clock & { wallMs: number };
  readonly folder: string;
  readonly reopen: (config?: Partial<DebianVendorConfig>) => Promise<Vendor>;
};

export type Attack = {
  readonly config?: Partial<DebianVendorConfig>;
  readonly bounds?: Partial<HttpFetchDeps>;
  /** Whether to see a later honest archive work again; true by default. */
  readonly recovers?: boolean;
};

export type ArchiveRig = {
  readonly archive: DebianArchive;
  readonly server: FakeHttpServer;
  readonly publish: (...specs: readonly SuiteSpec[]) => Promise<void>;
  readonly makeRig: (
    t: TestContext,
    config?: Partial<DebianVendorConfig>,
    bounds?: Partial<HttpFetchDeps>,
  ) => Promise<Rig>;
  /**
   * Refreshes once well, spoils the archive, refreshes again: it must be refused with the code, its suite be named, the
   * first state stay, and a later honest archive work again.
   */
  readonly assertRefused: (
    t: TestContext,
    code: string,
    spoil: () => Promise<void> | void,
    attack?: Attack,
  ) => Promise<Rig>;
  readonly close: () => Promise<void>;
};

export function inventoryOf(
  products: Readonly<Record<string, string>>,
  more: Partial<InstalledProduct> = {},
): Inventory {
  return {
    os: { id: 'debian', versionId: '12', codename: 'bookworm', arch: 'amd64' },
    products: Object.entries(products).map(([product, version]) => ({
      ecosystem: 'debian',
      product,
      version,
      arch: product === 'tzdata' ? 'all' : 'amd64',
      state: 'installed',
      ...more,
    })),
    config: [],
    agent: { version: '1', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['none'] },
    freeBytes: 1e9,
    rebootRequired: false,
    lastShutdown: null,
  };
}

/** A VM on which jq is old. */
export const OLD = inventoryOf({ jq: '1.6-2', tzdata: '2026a-0' });

/** Makes the archive with three keys and its server. Making keys and packages takes most of the time: share one among tests. */
export async function makeArchiveRig(): Promise<ArchiveRig> {
  const root = await mkdtemp(join(tmpdir(), 'pratique-debian-'));
  const archive = await makeDebianArchive(root, ['archive', 'second', 'thief']);
  const server = await startHttpServer(archive.folder);

  const makeRig: ArchiveRig['makeRig'] = async (t, config = {}, bounds = {}) => {
    const folder = await mkdtemp(join(root, 'vendor-'));
    const clock = { ...systemClock, wallMs: NOON, nowMs: () => clock.wallMs };
    const http = makeHttpFetch({ clock: systemClock, ...bounds });
    const keyring = await archive.keyring('archive', 'second');
    const suites = ['bookworm', 'bookworm-security'];
    const reopen = async (more: Partial<DebianVendorConfig> = {}): Promise<Vendor> => {
      const full = { name: 'debian', suites, url: server.url, keyring, arch: 'amd64', ...config, ...more };
      const deps = { folder, http, clock, metadataAgeMaxMs: 24 * HOUR_MS, log: silentLog };
      const vendor = await makeDebianVendor(full, deps);
      t.after(() => vendor.close().catch(() => {}));
      return vendor;
    };
    t.after(() => http.close());
    return { vendor: await reopen(), clock, folder, reopen };
  };

  const publish: ArchiveRig['publish'] = async (...specs) => {
    for (const spec of specs) await archive.publish(spec);
  };

  const assertRecovers = async ({ vendor, clock }: Rig): Promise<void> => {
    server.fail('/dists/bookworm/InRelease', null);
    server.fail('/dists/bookworm/main/binary-amd64/Packages.xz', null);
    await publish(HONEST, SECURITY);
    assert.equal((await vendor.refresh({})).trouble, null);
    assert.equal(vendor.status().checkedAtMs, clock.wallMs);
    const jq = (await vendor.latest(OLD)).releases.find(({ product }) => product === 'jq');
    assert.equal(jq?.version, '1.6-2+deb12u7');
  };

  return {
    archive,
    server,
    publish,
    makeRig,
    assertRefused: async (t, code, spoil, { config = {}, bounds = {}, recovers = true } = {}) => {
      await publish(MAIN, SECURITY);
      const rig = await makeRig(t, config, bounds);
      await rig.vendor.refresh({});
      const known = await rig.vendor.latest(OLD);
      await spoil();
      rig.clock.wallMs += HOUR_MS;
      await assert.rejects(rig.vendor.refresh({}), { code });
      const { trouble, checkedAtMs } = rig.vendor.status();
      assert.equal(trouble?.code, code);
      assert.match(trouble.message, /^1 of 2 suites could not be refreshed \(the others were refreshed\): bookworm: /);
      assert.equal(checkedAtMs, NOON);
      assert.deepEqual(await rig.vendor.latest(OLD), known);
      if (recovers) await assertRecovers(rig);
      return rig;
    },
    close: async () => {
      await server.close();
      await archive.close();
    },
  };
}
