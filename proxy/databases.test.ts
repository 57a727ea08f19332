// Each schema that ever lay on a disk is opened by today's program, with its rows; what would lose them is refused.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { PratiqueError } from '../src/base/errors.ts';
import { type Migration, openDatabase, schemaVersion } from '../src/base/sqlite.ts';
import { makeInventoryStore } from '../src/inventory/inventory-store.ts';
import { openLeaseRows } from '../src/license/lease-rows.ts';
import { openLeaseUse } from '../src/license/lease-use.ts';
import type { VmId } from '../src/model/ids.ts';
import { openCatalog } from '../src/store/catalog.ts';
import { openJournal, type StoredVm } from '../src/update/journal.ts';
import { recover } from '../src/update/recover.ts';
import { remarksOf } from '../src/update/remarks.ts';
import { OTHER_RUN } from '../src/update/samples.ts';
import { explain } from '../src/update/why.ts';
import { openPackageIndex } from '../src/vendor/debian-apt/package-index.ts';
import { HOST_DATABASE, HOST_MIGRATIONS } from './databases.ts';
import { policyOf } from './vm-policy.ts';

const FIXTURES = new URL('../test/fixtures/schemas/', import.meta.url).pathname;
/** The first schema that a program people could run left on a disk. */
const FIRST_SCHEMAS = { pratique: 3, catalog: 1, packages: 1 } as const;

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pratique-schemas-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** A database as the fixture describes it. */
function fromFixture(fixture: string, path: string): string {
  const db = new DatabaseSync(path);
  db.exec(readFileSync(join(FIXTURES, fixture), 'utf8'));
  db.close();
  return path;
}

const versionOf = (path: string): number => {
  const db = new DatabaseSync(path, { readOnly: true });
  const version = schemaVersion(db);
  db.close();
  return version;
};

const openers = {
  pratique: () => openDatabase(join(folder, 'fresh.sqlite'), HOST_MIGRATIONS).close(),
  catalog: () => openCatalog(folder).close(),
  packages: () => openPackageIndex(join(folder, 'fresh.sqlite'), systemClock).close(),
} as const;

for (const [name, first] of Object.entries(FIRST_SCHEMAS)) {
  test(`every schema of ${name} has a fixture, so that whoever changes it keeps the rows of those before`, () => {
    openers[name as keyof typeof openers](); // The cast holds: both tables have the same keys.
    const fresh = join(folder, name === 'catalog' ? 'catalog.sqlite' : 'fresh.sqlite');
    const wanted = Array.from({ length: versionOf(fresh) - first + 1 }, (_, index) => `${name}-${first + index}.sql`);
    const found = readdirSync(FIXTURES).filter((file) => file.startsWith(`${name}-`));
    assert.deepEqual(found.sort(), wanted);
    assert.ok(wanted.length > 0);
  });
}

/** What must hold of a VM of a fixture, whichever schema it came from. */
function assertUsable(record: StoredVm): void {
  const { state } = record.journaled;
  const resolved = policyOf({ policyOfFiles: {}, groups: {} }, record.vm, record);
  assert.equal(resolved.trouble, null);
  assert.notEqual(explain(record.vm, state, resolved.policy).reason, '');
  assert.ok(Array.isArray(remarksOf(state)));
  // As after a reboot of the host, at the time the fixture was written.
  const fresh = { run: OTHER_RUN, atMs: 2, planAgeMaxMs: 1_000_000 };
  const recovered = recover(state, { kind: 'none' }, fresh).state;
  assert.doesNotMatch(JSON.stringify(recovered), /null,"sessions"|NaN/);
  if (!('run' in recovered)) return;
  const { run } = recovered;
  assert.equal(typeof run.isOnTrial, 'boolean');
  assert.ok(Number.isInteger(run.sessions + run.reboots + run.offersSent));
  if (run.plan !== null) assert.ok(Array.isArray(run.plan.versions));
}

for (const version of [3, 4, 5, 6, 7]) {
  test(`a host of schema ${version} is opened with its VMs in every state, inventories, drift, events and vendors`, () => {
    const path = fromFixture(`pratique-${version}.sql`, join(folder, HOST_DATABASE));
    const before = new DatabaseSync(path, { readOnly: true });
    const rows = (table: string) => Number(before.prepare(`SELECT count(*) AS n FROM ${table}`).get()?.n);
    const counts = Object.fromEntries(
      ['vm', 'run_state', 'event', 'inventories', 'drift', 'vendor'].map((t) => [t, rows(t)]),
    );
    before.close();
    assert.ok((counts.vm ?? 0) >= 18, 'every state of its time');
    const db = openDatabase(path, HOST_MIGRATIONS);
    const journal = openJournal(db);
    const records = journal.load();
    assert.equal(records.length, counts.vm);
    for (const record of records) assertUsable(record);
    // Odd ones were given a word of their own.
    assert.equal(records[0]?.own.allowReboot, false);
    assert.equal(journal.notes({ afterSeq: 0, limit: 1000 }).length, counts.event);
    const inventories = makeInventoryStore(db);
    assert.equal(inventories.vms().length, counts.inventories);
    assert.equal(inventories.last('vm-01-off' as VmId)?.inventory.products[0]?.product, 'hello'); // The name has a VM's form.
    assert.equal(inventories.drift().length, counts.drift);
    assert.match(String(db.prepare('SELECT config FROM vendor').get()?.config), /updates\.example/);
    const failed = journal.failedUpdates('vm-01-off' as VmId); // The name has a VM's form.
    assert.equal(failed.length, version === 3 ? 0 : 1);
    // A plan is there as a whole or not at all, and the run knows which.
    for (const { journaled } of records) {
      const run = 'run' in journaled.state ? journaled.state.run : null;
      if (run === null || run.plan === null) continue;
      const plan = journal.loadPlan(run.run);
      assert.ok(plan !== null && Array.isArray(plan.leftOut), journaled.state.kind);
    }
    db.close();
    assert.equal(versionOf(path), HOST_MIGRATIONS.length);
  });
}

test('a host of schema 7 is opened with its leases in every state, what its licenses were used for, and its tenants', () => {
  const db = openDatabase(fromFixture('pratique-7.sql', join(folder, HOST_DATABASE)), HOST_MIGRATIONS);
  const leases = openLeaseRows(db);
  assert.deepEqual(
    leases.list().map(({ vm, state, seat }) => [vm, state, seat]),
    [
      ['vm-01-off', 'held', 'seat-1'],
      ['vm-02-staged', 'asking', null],
      ['vm-03-booting', 'releasing', 'seat-3'],
      ['vm-04-reporting', 'refused', null],
      ['vm-05-planning', 'ended', 'seat-5'],
    ],
  );
  assert.deepEqual(leases.word('acme'), { serial: 7, ended: 'SUSPENDED' });
  assert.equal(leases.hostKey()[31], 0x1f, 'fingerprints stay, so that servers know the VMs again');
  const use = openLeaseUse(db).usage({ sinceMs: 1_790_000_000_000, nowMs: 1_790_003_600_000 });
  assert.deepEqual(
    use.map(({ vm, seatHours, fetches, bytes }) => [vm, seatHours, fetches, bytes]),
    [
      ['vm-01-off', 1, 2, 1_024],
      ['vm-05-planning', 1, 0, 0],
    ],
  );
  assert.equal(db.prepare('SELECT tenant FROM vm_tenant').get()?.tenant, 'retail');
  assert.match(String(db.prepare('SELECT definition FROM license').get()?.definition), /licenses\.example/);
  db.close();
});

test('a catalog of schema 1 is opened with its blobs and pins', () => {
  fromFixture('catalog-1.sql', join(folder, 'catalog.sqlite'));
  const catalog = openCatalog(folder);
  assert.deepEqual(
    catalog.list().map(({ digest, isPinned }) => [digest.slice(0, 1), isPinned]),
    [
      ['a', false],
      ['b', true],
    ],
  );
  catalog.close();
});

for (const version of [1, 2, 3]) {
  test(`a package index of schema ${version} keeps the dates and keys that forbid going back`, () => {
    const path = fromFixture(`packages-${version}.sql`, join(folder, 'packages-amd64.sqlite'));
    const index = openPackageIndex(path, systemClock);
    const [suite] = index.suites();
    assert.equal(suite?.suite, 'bookworm-security');
    assert.equal(suite.dateMs, 1_789_990_000_000);
    assert.deepEqual(suite.fingerprints, ['A'.repeat(40)]);
    assert.equal(suite.indexKey, '', 'its packages are imported again');
    assert.deepEqual(index.byName('jq'), []);
    if (version > 1) assert.deepEqual(index.advisedSources(), ['jq']);
    index.close();
  });
}

const add =
  (table: string): Migration =>
  (db) =>
    db.exec(`CREATE TABLE ${table} (x TEXT NOT NULL) STRICT`);

test('a newer schema is refused with the way back, and the file stays as it is', () => {
  const path = join(folder, 'x.sqlite');
  openDatabase(path, [add('a'), add('b')]).close();
  const before = readFileSync(path);
  assert.throws(
    () => openDatabase(path, [add('a')]),
    (error: unknown) => {
      assert.ok(error instanceof PratiqueError);
      assert.equal(error.code, 'host-unfit/schema-newer');
      assert.match(error.message, /schema 2, this program knows 1/);
      assert.match(error.next ?? '', /restore/);
      return true;
    },
  );
  assert.deepEqual(readFileSync(path), before);
});

test('before a migration the database is copied, for its owner only; only the newest copy stays', () => {
  const path = join(folder, 'x.sqlite');
  const first = openDatabase(path, [add('a')]);
  first.exec("INSERT INTO a VALUES ('kept')");
  first.close();
  assert.deepEqual(readdirSync(folder), ['x.sqlite'], 'a new database has nothing to lose');
  openDatabase(path, [add('a'), add('b')]).close();
  assert.equal(versionOf(`${path}.schema-1`), 1);
  assert.equal(statSync(`${path}.schema-1`).mode & 0o777, 0o600);
  openDatabase(path, [add('a'), add('b'), add('c')]).close();
  assert.deepEqual(readdirSync(folder).sort(), ['x.sqlite', 'x.sqlite.schema-2']);
  const copy = new DatabaseSync(`${path}.schema-2`, { readOnly: true });
  assert.equal(copy.prepare('SELECT x FROM a').get()?.x, 'kept');
  copy.close();
  openDatabase(path, [add('a'), add('b'), add('c')]).close();
  assert.deepEqual(readdirSync(folder).sort(), ['x.sqlite', 'x.sqlite.schema-2'], 'nothing to do, nothing copied');
});

test('a migration that fails in its middle changes nothing of its step and is tried again', () => {
  const path = join(folder, 'x.sqlite');
  openDatabase(path, [add('a')]).close();
  const fails: Migration = (db) => {
    db.exec('CREATE TABLE c (x TEXT) STRICT; DROP TABLE a');
    throw new Error('the disk is full');
  };
  assert.throws(
    () => openDatabase(path, [add('a'), add('b'), fails]),
    (error: unknown) => error instanceof PratiqueError && error.code === 'host-fault/migration',
  );
  assert.equal(versionOf(path), 2);
  const db = openDatabase(path, [add('a'), add('b'), add('c')]);
  const tables = db.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").all();
  assert.deepEqual(
    tables.map(({ name }) => name),
    ['a', 'b', 'c'],
  );
  db.close();
});

test('where the copy cannot be written, nothing is migrated', () => {
  const path = join(folder, 'x.sqlite');
  openDatabase(path, [add('a')]).close();
  mkdirSync(`${path}.schema-1/full`, { recursive: true });
  assert.throws(
    () => openDatabase(path, [add('a'), add('b')]),
    (error: unknown) => error instanceof PratiqueError && /nothing was changed/.test(error.message),
  );
  assert.equal(versionOf(path), 1);
});
