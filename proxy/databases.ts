// The databases of a data folder: where they lie, and the order of the host's own migrations.
import type { Migration } from '../src/base/sqlite.ts';
import { INVENTORY_MIGRATIONS } from '../src/inventory/inventory-store.ts';
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
];
