// The demonstration's license: a real license server on loopback with one seat, and what befalls it before the VM starts.
import { join } from 'node:path';
import { type Clock, isoTime } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { makeLog } from '../../src/base/log.ts';
import type { VmId } from '../../src/model/ids.ts';
import { listen, makeLicenseApi } from '../license-server/http.ts';
import { LicenseStore, tokenHashOf } from '../license-server/license-store.ts';
import type { LeaseView } from '../licenses-service.ts';
import type { Service } from '../service.ts';
import { waitUntil } from './demo-network.ts';
import type { LicenseFate } from './scenarios.ts';

/** As the release names it. */
export const DEMO_LICENSE = 'demo-license';
const HOUR_MS = 3_600_000;
const WAIT_TIMEOUT_MS = 120_000;
/** Another host's VM. */
const STRANGER = 'f'.repeat(64);

/** What the host's configuration says of leases where time has to pass quickly. */
export function leaseWords(fate: LicenseFate): Record<string, unknown> {
  if (fate === 'away') return { licenses: { leaseDuration: '5s', grace: '1h', poll: '1s' } };
  if (fate === 'lapsed') return { licenses: { leaseDuration: '5s', grace: '5s', poll: '1s' } };
  return { licenses: { poll: '1s' } };
}

export type DemoLicense = {
  /** Tells the host of the license. */
  readonly add: (service: Service, origin: string) => Promise<void>;
  /** What befalls the license while the VM is off and what it needs is fetched. */
  readonly strike: (service: Service, vm: VmId) => Promise<void>;
  readonly close: () => Promise<void>;
};

/** Starts the server; the seat is free, or another host's already. */
export async function startDemoLicense(options: {
  readonly folder: string;
  readonly fate: LicenseFate;
  readonly clock: Clock;
  readonly say: (line: string) => void;
}): Promise<DemoLicense> {
  const { folder, fate, clock, say } = options;
  const store = new LicenseStore(join(folder, 'license-server.db'), clock);
  const terms = { product: null, tenant: null, expiresAtMs: null, leaseMaxMs: 24 * HOUR_MS, checkoutMaxMs: 0 };
  const { token } = store.create(DEMO_LICENSE, { seats: 1, ...terms });
  const api = makeLicenseApi({ store, clock, log: makeLog('warn') });
  const url = await listen(api, { host: '127.0.0.1', port: 0 }, false);
  let isServing = true;
  const stop = async (): Promise<void> => {
    if (isServing) await api.close();
    isServing = false;
  };
  if (fate === 'exhausted') {
    const request = { nonce: '0'.repeat(32), license: DEMO_LICENSE, fingerprint: STRANGER, durationMs: HOUR_MS };
    store.lease({ tokenHash: tokenHashOf(token), license: DEMO_LICENSE }, request);
  }
  return {
    add: async (service, origin) => {
      const keys = store.signingKeys().map(({ publicPem }) => publicPem);
      await service.addLicense(
        {
          ...{ license: DEMO_LICENSE, kind: 'pratique', serverUrl: url, publicKey: keys.join(''), origins: [origin] },
          ...{ tenants: [], isLab: true },
        },
        { token, isUnchecked: false, actor: 'demo' },
      );
      say(`license ${DEMO_LICENSE}: 1 seat${fate === 'exhausted' ? ', which another host holds' : ''}`);
    },
    strike: async (service, vm) => {
      if (fate === 'valid' || fate === 'exhausted') return;
      await waitForLease(
        service,
        clock,
        vm,
        'its seat is taken and its update fetched',
        ({ state }) => state === 'held',
      );
      await waitUntil(clock, WAIT_TIMEOUT_MS, async () => (await service.showVm(vm)).state === 'staged');
      if (fate === 'revoked') {
        store.revoke(DEMO_LICENSE);
        say('the server revokes the license: the update is on this host already');
        return await waitForLease(service, clock, vm, 'the host knows', ({ state }) => state === 'ended');
      }
      await stop();
      say(`the license server goes away at ${isoTime(clock.nowMs())}`);
      const wanted = fate === 'away' ? 'grace' : 'over';
      const what = fate === 'away' ? 'the lease runs out, its grace begins' : 'the lease runs out, and its grace';
      await waitForLease(service, clock, vm, what, ({ standing }) => standing === wanted);
      say(what);
    },
    close: async () => {
      await stop();
      store.close();
    },
  };
}

async function waitForLease(
  service: Service,
  clock: Clock,
  vm: VmId,
  what: string,
  isSo: (lease: LeaseView) => boolean,
): Promise<void> {
  const found = await waitUntil(clock, WAIT_TIMEOUT_MS, async () => (await service.leases({ vm })).some(isSo));
  if (!found) throw new PratiqueError('internal/demo', `${vm}: waited in vain until ${what}`);
}
