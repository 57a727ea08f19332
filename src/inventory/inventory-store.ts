// The last inventory of every VM, where it came from, and since when each product is behind. Durable.
import { isDeepStrictEqual } from 'node:util';
import { parseJson } from '../base/parse.ts';
import { type DatabaseSync, inTransaction, type Migration } from '../base/sqlite.ts';
import type { VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import type { ConfigBehind } from './config-drift.ts';
import type { Behind } from './drift.ts';

/** How an inventory was learnt: the agent's report, its confirmation, or the switched-off disk. */
export type InventorySource = 'report' | 'confirm' | 'disk';

export type KnownInventory = {
  readonly inventory: Inventory;
  readonly atMs: number;
  readonly source: InventorySource;
};

/** A product that is behind, or an item of configuration, with the wall time since when we know it. */
export type DriftEntry = (Behind | ConfigBehind) & { readonly vm: VmId; readonly sinceMs: number };

export type InventoryStore = {
  /** Remembers the newest inventory; an older one than what is known is ignored. */
  readonly record: (vm: VmId, known: KnownInventory) => void;
  readonly last: (vm: VmId) => KnownInventory | null;
  readonly vms: () => readonly VmId[];
  /**
   * Replaces what is known to be behind. A product keeps its time as long as it stays behind, also when a still newer
   * version comes out; one that is up to date is forgotten.
   */
  readonly setDrift: (vm: VmId, behind: readonly (Behind | ConfigBehind)[], nowMs: number) => readonly DriftEntry[];
  /** What is behind, of one VM or of all, oldest first. */
  readonly drift: (vm?: VmId) => readonly DriftEntry[];
  readonly forget: (vm: VmId) => void;
};

/** The tables, for openDatabase; a database that holds others too gives these their place in its list. */
export const INVENTORY_MIGRATIONS: readonly Migration[] = [
  (db) =>
    db.exec(`
      CREATE TABLE inventories (vm TEXT PRIMARY KEY, inventory TEXT NOT NULL, at_ms INTEGER NOT NULL, source TEXT NOT NULL) STRICT;
      CREATE TABLE drift (
        vm TEXT NOT NULL, key TEXT NOT NULL, since_ms INTEGER NOT NULL, behind TEXT NOT NULL, PRIMARY KEY (vm, key)
      ) STRICT;
      CREATE INDEX drift_since ON drift (since_ms)`),
];

/** The store over an open database that has the tables of INVENTORY_MIGRATIONS. */
export function makeInventoryStore(db: DatabaseSync): InventoryStore {
  const upsert = db.prepare(`INSERT INTO inventories (vm, inventory, at_ms, source) VALUES (?, ?, ?, ?)
    ON CONFLICT (vm) DO UPDATE SET inventory = excluded.inventory, at_ms = excluded.at_ms, source = excluded.source
    WHERE excluded.at_ms >= inventories.at_ms`);
  const selectLast = db.prepare('SELECT inventory, at_ms, source FROM inventories WHERE vm = ?');
  const selectVms = db.prepare('SELECT vm FROM inventories ORDER BY vm');
  const selectDriftOf = db.prepare('SELECT vm, key, since_ms, behind FROM drift WHERE vm = ? ORDER BY since_ms, key');
  const selectDrift = db.prepare('SELECT vm, key, since_ms, behind FROM drift ORDER BY since_ms, vm, key');
  const forgetInventory = db.prepare('DELETE FROM inventories WHERE vm = ?');
  const forgetDrift = db.prepare('DELETE FROM drift WHERE vm = ?');
  const drift = (vm?: VmId) =>
    // The cast holds: these are the columns of the table.
    ((vm === undefined ? selectDrift.all() : selectDriftOf.all(vm)) as DriftRow[]).map(driftEntry);

  return {
    record: (vm, { inventory, atMs, source }) => {
      upsert.run(vm, JSON.stringify(inventory), atMs, source);
    },
    last: (vm) => {
      const row = selectLast.get(vm) as InventoryRow | undefined;
      if (row === undefined) return null;
      // The cast holds: only record() writes this column.
      const inventory = parseJson(row.inventory, `the inventory of VM ${vm}`, 'host-fault/database') as Inventory;
      return { inventory, atMs: row.at_ms, source: row.source };
    },
    vms: () => selectVms.all().map((row) => row.vm as VmId),
    setDrift: (vm, behind, nowMs) => {
      inTransaction(db, () => replaceDrift(db, vm, behind, nowMs));
      return drift(vm);
    },
    drift,
    forget: (vm) =>
      inTransaction(db, () => {
        forgetInventory.run(vm);
        forgetDrift.run(vm);
      }),
  };
}

type InventoryRow = { readonly inventory: string; readonly at_ms: number; readonly source: InventorySource };
type DriftRow = { readonly vm: VmId; readonly key: string; readonly since_ms: number; readonly behind: string };

function replaceDrift(db: DatabaseSync, vm: VmId, behind: readonly (Behind | ConfigBehind)[], nowMs: number): void {
  const rows = db.prepare('SELECT vm, key, since_ms, behind FROM drift WHERE vm = ?').all(vm) as DriftRow[];
  const known = new Map(rows.map((row) => [row.key, row]));
  const seen = new Set<string>();
  const put = db.prepare('INSERT OR REPLACE INTO drift (vm, key, since_ms, behind) VALUES (?, ?, ?, ?)');
  const remove = db.prepare('DELETE FROM drift WHERE vm = ? AND key = ?');
  for (const one of behind) {
    const key = driftKey(one);
    // A guest may list a product twice.
    if (seen.has(key)) continue;
    seen.add(key);
    const before = known.get(key);
    if (before !== undefined && isDeepStrictEqual(JSON.parse(before.behind), one)) continue;
    put.run(vm, key, before?.since_ms ?? nowMs, JSON.stringify(one));
  }
  for (const key of known.keys()) if (!seen.has(key)) remove.run(vm, key);
}

function driftKey({ ecosystem, product, arch }: Behind | ConfigBehind): string {
  return `${ecosystem}/${product}${arch === null ? '' : `:${arch}`}`;
}

function driftEntry(row: DriftRow): DriftEntry {
  // The cast holds: only replaceDrift() writes this column.
  const behind = parseJson(row.behind, `the drift of VM ${row.vm}`, 'host-fault/database') as Behind | ConfigBehind;
  return { ...behind, vm: row.vm, sinceMs: row.since_ms };
}
