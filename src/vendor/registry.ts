// All vendors of this host by name. One that is broken is shown with its trouble and stops none of the others.
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { describeError, PratiqueError } from '../base/errors.ts';
import type { HttpFetch } from '../base/http-fetch.ts';
import { VENDORS_MAX } from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { printable } from '../base/printable.ts';
import type { Inventory } from '../model/inventory.ts';
import { compareDebianVersions, type DebianVendorConfig, makeDebianVendor } from './debian-apt/index.ts';
import { VendorError } from './errors.ts';
import { makeTufVendor } from './tuf/index.ts';
import { compareSemver } from './tuf/order.ts';
import type { Offered, Vendor, VendorStatus } from './vendor.ts';

/** How an operator names a source of updates. */
export type VendorConfig =
  | {
      readonly kind: 'tuf';
      readonly name: string;
      readonly metadataUrl: string;
      readonly targetsUrl: string;
      /** Other places of the same repository, tried in this order. */
      readonly mirrors?: readonly { readonly metadataUrl: string; readonly targetsUrl: string }[];
      readonly rootPath: string;
    }
  | ({ readonly kind: 'debian-apt' } & DebianVendorConfig);

/** What every vendor is made with. */
export type VendorDeps = {
  /** Where this vendor keeps its state; made when absent. */
  readonly folder: string;
  readonly http: HttpFetch;
  readonly clock: Clock;
  /** Metadata verified longer ago are not fresh. */
  readonly metadataAgeMaxMs: number;
  readonly log: Log;
};

/** Opens one vendor from its configuration and what is on disk, without network. Throws a PratiqueError. */
export async function openVendor(config: VendorConfig, deps: VendorDeps): Promise<Vendor> {
  if (!/^[a-z0-9][a-z0-9._-]{0,63}$/.test(config.name)) {
    throw new VendorError('usage/vendor-name', `"${printable(config.name)}" cannot name a vendor`, {
      next: 'use lower-case letters, digits, dots, dashes and underscores, at most 64',
    });
  }
  switch (config.kind) {
    case 'tuf':
      return await makeTufVendor({ ...config, ...deps });
    case 'debian-apt':
      return await makeDebianVendor(config, deps);
    default:
      return config satisfies never;
  }
}

export type VendorReport = VendorStatus & { readonly kind: VendorConfig['kind'] };

export type VendorRegistry = {
  /** Adds a vendor. Throws `conflict/vendor` when the name is taken, or why it cannot be opened: then it is not added. */
  readonly add: (config: VendorConfig) => Promise<VendorReport>;
  /** Closes a vendor and forgets its state. Throws `not-found/vendor`. */
  readonly remove: (name: string) => Promise<void>;
  /** The vendor by its name. Throws `not-found/vendor`, or why it could not be opened. */
  readonly get: (name: string) => Vendor;
  /** All vendors that could be opened. */
  readonly opened: () => readonly Vendor[];
  /**
   * Every configured vendor, to plan with. One that could not be opened was never checked, a refresh tries again to open it, and
   * whatever else it is asked throws why it cannot: left out, it would let a VM pass that it has something newer for.
   */
  readonly all: () => readonly Vendor[];
  /** Every configured vendor, also those that could not be opened. */
  readonly reports: () => readonly VendorReport[];
  /** Refreshes one vendor, or all of them at once. What is ill is in its report; only an unknown name and an abort throw. */
  readonly refresh: (
    name: string | null,
    options: { readonly signal?: AbortSignal },
  ) => Promise<readonly VendorReport[]>;
  /** The newest fitting releases of all vendors for one VM; a vendor that fails here is logged and left out. */
  readonly latest: (inventory: Inventory) => Promise<Offered>;
  readonly close: () => Promise<void>;
};

type Entry = {
  readonly config: VendorConfig;
  vendor: Vendor | null;
  failure: unknown;
  /** Under way: a vendor is opened once, however many ask. */
  opening: Promise<void> | null;
};

/** Opens all configured vendors; `deps.folder` is the parent of their folders. Throws for a name given twice, not for a broken vendor. */
export async function makeVendorRegistry(configs: readonly VendorConfig[], deps: VendorDeps): Promise<VendorRegistry> {
  const entries = new Map<string, Entry>();
  const depsOf = (name: string): VendorDeps => ({ ...deps, folder: join(deps.folder, name) });
  const openNow = async (entry: Entry) => {
    try {
      entry.vendor = await openVendor(entry.config, depsOf(entry.config.name));
      entry.failure = null;
    } catch (error) {
      entry.failure = error;
      deps.log.error({ vendor: entry.config.name, problem: describeError(error) }, 'a vendor cannot be opened');
    }
    entry.opening = null;
  };
  const tryOpen = async (entry: Entry) => {
    entry.opening ??= openNow(entry);
    await entry.opening;
  };
  const find = (name: string): Entry => {
    const entry = entries.get(name);
    if (entry !== undefined) return entry;
    throw new VendorError('not-found/vendor', `there is no vendor "${printable(name)}"`, {
      next: '`pratique vendor list` shows all',
    });
  };
  const claim = (config: VendorConfig): Entry => {
    if (entries.has(config.name)) {
      throw new VendorError('conflict/vendor', `there is already a vendor "${printable(config.name)}"`, {
        next: 'choose another name, or remove that one first',
      });
    }
    if (entries.size >= VENDORS_MAX)
      throw new VendorError('usage/vendors', `a host has at most ${VENDORS_MAX} vendors`);
    const entry: Entry = { config, vendor: null, failure: null, opening: null };
    entries.set(config.name, entry);
    return entry;
  };
  await Promise.all(configs.map((config) => tryOpen(claim(config))));

  return {
    add: async (config) => {
      const entry = claim(config);
      await tryOpen(entry);
      if (entry.vendor !== null) return reportOf(entry);
      entries.delete(config.name);
      throw entry.failure;
    },
    remove: async (name) => {
      const entry = find(name);
      entries.delete(name);
      await entry.vendor?.close();
      await rm(join(deps.folder, entry.config.name), { recursive: true, force: true });
    },
    get: (name) => {
      const entry = find(name);
      if (entry.vendor === null) throw entry.failure;
      return entry.vendor;
    },
    opened: () => [...entries.values()].flatMap(({ vendor }) => vendor ?? []),
    all: () => [...entries.values()].map((entry) => entry.vendor ?? standIn(entry, tryOpen)),
    reports: () => [...entries.values()].map(reportOf),
    refresh: async (name, { signal }) => {
      const wanted = name === null ? [...entries.values()] : [find(name)];
      await Promise.all(wanted.map((entry) => refreshEntry(entry, tryOpen, signal)));
      signal?.throwIfAborted();
      return wanted.map(reportOf);
    },
    latest: async (inventory) => {
      const vendors = [...entries.values()].flatMap(({ vendor }) => vendor ?? []);
      const lists = await Promise.all(vendors.map((vendor) => latestOf(vendor, inventory, deps.log)));
      return { releases: lists.flatMap((list) => list.releases), leftOut: lists.flatMap((list) => list.leftOut) };
    },
    close: async () => {
      await Promise.all([...entries.values()].map(({ vendor }) => vendor?.close().catch(() => {})));
    },
  };
}

/** The failure itself is in the vendor's status; the others go on. */
async function refreshEntry(
  entry: Entry,
  tryOpen: (entry: Entry) => Promise<void>,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (entry.vendor === null) await tryOpen(entry);
  await entry.vendor?.refresh(signal === undefined ? {} : { signal }).catch(() => {});
}

/** In the place of a vendor that could not be opened; once it could, the vendor itself. */
function standIn(entry: Entry, tryOpen: (entry: Entry) => Promise<void>): Vendor {
  const { config } = entry;
  const isDebian = config.kind === 'debian-apt';
  const opened = (): Vendor => {
    if (entry.vendor === null) throw entry.failure;
    return entry.vendor;
  };
  return {
    name: config.name,
    kind: config.kind,
    ecosystem: isDebian ? 'debian' : 'bundle',
    refresh: async (options) => {
      if (entry.vendor === null) await tryOpen(entry);
      return await opened().refresh(options);
    },
    status: () => reportOf(entry),
    latest: async (inventory) => await opened().latest(inventory),
    offers: async () => await opened().offers(),
    compareVersions: isDebian ? compareDebianVersions : compareSemver,
    open: async (...asked) => await opened().open(...asked),
    inspect: async (release, path) => await opened().inspect(release, path),
    ...(isDebian ? { signedArchives: async (releases) => (await opened().signedArchives?.(releases)) ?? [] } : {}),
    close: async () => {},
  };
}

async function latestOf(vendor: Vendor, inventory: Inventory, log: Log): Promise<Offered> {
  try {
    return await vendor.latest(inventory);
  } catch (error) {
    log.error({ vendor: vendor.name, problem: describeError(error) }, 'a vendor cannot say what is latest');
    return { releases: [], leftOut: [] };
  }
}

function reportOf({ config, vendor, failure }: Entry): VendorReport {
  if (vendor !== null) return { ...vendor.status(), kind: config.kind };
  const code = failure instanceof PratiqueError ? failure.code : 'internal/bug';
  const trouble = { code, message: printable(describeError(failure), 600) };
  return { vendor: config.name, kind: config.kind, checkedAtMs: null, isFresh: false, trouble };
}
