// The databases of a data folder: where they lie, and the order of the host's own migrations.
import { AUDIT_MIGRATIONS } from '../src/audit/rows.ts';
import type { Migration } from '../src/base/sqlite.ts';
import { INVENTORY_MIGRATIONS } from '../src/inventory/inventory-store.ts';
import { LEASE_MIGRATIONS } from '../src/license/lease-rows.ts';
import { CATALOG_MIGRATIONS } from '../src/store/catalog.ts';
import {
  FAILED_UPDATE_MIGRATIONS,
  JOURNAL_MIGRATIONS,
  OWN_POLICY_MIGRATIONS,
  RUN_SHAPE_MIGRATIONS,
} from '../src/update/journal.ts';
import { VENDOR_MIGRATIONS } from './vendor-book.ts';

/** VMs, their runs, inventories, vendors; below the data folder. */
export const HOST_DATABASE = 'pratique.db';

/** Numbered by their places: new ones only at the end, and each with a fixture of the schema before it (test/fixtures/schemas). */
export const HOST_MIGRATIONS: readonly Migration[] = [
  ...JOURNAL_MIGRATIONS,
  ...INVENTORY_MIGRATIONS,
  ...VENDOR_MIGRATIONS,
  ...FAILED_UPDATE_MIGRATIONS,
  ...OWN_POLICY_MIGRATIONS,
  ...RUN_SHAPE_MIGRATIONS,
  ...LEASE_MIGRATIONS,
];

/** The newest schema that this program knows of each database with a fixed place. */
export const KNOWN_SCHEMAS: Readonly<Record<string, number>> = {
  [HOST_DATABASE]: HOST_MIGRATIONS.length,
  'audit/audit.db': AUDIT_MIGRATIONS.length,
  'store/catalog.sqlite': CATALOG_MIGRATIONS.length,
};
