// The host's vendors: the registry, remembered over restarts and asked at intervals (A1).
import type { Clock } from '../src/base/clock.ts';
import { VENDOR_POLL_MS } from '../src/base/limits.ts';
import type { DatabaseSync, Migration } from '../src/base/sqlite.ts';
import {
  makeVendorRegistry,
  type VendorConfig,
  type VendorDeps,
  type VendorRegistry,
  type VendorReport,
} from '../src/vendor/registry.ts';

export const VENDOR_MIGRATIONS: readonly Migration[] = [
  (db) => db.exec('CREATE TABLE vendor (name TEXT PRIMARY KEY, config TEXT NOT NULL) STRICT'),
];

export type VendorBook = {
  readonly registry: VendorRegistry;
  /** Opens, remembers and asks a vendor. Throws when the name is taken or it cannot be opened; then nothing was added. */
  readonly add: (config: VendorConfig) => Promise<VendorReport>;
  readonly close: () => Promise<void>;
};

/** Opens the configured vendors and those that were added before; `deps.folder` holds a folder for each. */
export async function openVendorBook(
  configured: readonly VendorConfig[],
  deps: VendorDeps & { readonly db: DatabaseSync; readonly clock: Clock },
): Promise<VendorBook> {
  const { db, clock } = deps;
  // The casts hold: only `add` below writes this column.
  const rows = db.prepare('SELECT config FROM vendor ORDER BY name').all() as { config: string }[];
  const added = rows.map((row) => JSON.parse(row.config) as VendorConfig);
  const isNew = (config: VendorConfig) => !configured.some((each) => each.name === config.name);
  const registry = await makeVendorRegistry([...configured, ...added.filter(isNew)], deps);
  const stopPolling = pollForEver(clock, async () => void (await registry.refresh(null, {})));
  return {
    registry,
    add: async (config) => {
      const report = await registry.add(config);
      db.prepare('INSERT OR REPLACE INTO vendor (name, config) VALUES (?, ?)').run(config.name, JSON.stringify(config));
      const [refreshed] = await registry.refresh(config.name, {});
      return refreshed ?? report;
    },
    close: async () => {
      stopPolling();
      await registry.close();
    },
  };
}

function pollForEver(clock: Clock, ask: () => Promise<void>): () => void {
  let cancel = () => {};
  let isStopped = false;
  const arm = (): void => {
    if (isStopped) return;
    cancel = clock.after(VENDOR_POLL_MS, () => void ask().finally(arm));
  };
  arm();
  return () => {
    isStopped = true;
    cancel();
  };
}
