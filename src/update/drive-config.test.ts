// The configuration of a drive: resolved anew, in the planned versions only, and the same bytes again for the same run.
import assert from 'node:assert/strict';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeContents } from '../drive/contents.ts';
import type { ResolvedGuestConfig } from '../model/guest-config.ts';
import type { VmId } from '../model/ids.ts';
import { type Plan, planDigest } from '../model/plan.ts';
import { openConfigSalt, saltsBy } from './config-salt.ts';
import { configForDrive } from './drive-config.ts';
import { RunError } from './runner.ts';
import { RUN } from './samples.ts';

const VM = 'web-1' as VmId; // The form that the brand promises.
const PLAN: Plan = {
  vm: VM,
  run: RUN,
  items: [],
  config: [{ item: 'db@main', version: '1', fromVersion: null, kind: 'file', reboot: false }],
  configRemoved: [{ item: 'gone', version: '1' }],
  leftOut: [],
  vendors: [],
};
const guestConfig =
  (version: string, trouble: readonly string[] = []) =>
  async (): Promise<ResolvedGuestConfig> => ({
    items: [
      {
        item: 'db@main',
        version,
        setting: { kind: 'file', file: { path: '/etc/db', content: 'hunter2' } },
        origin: { source: 'file', at: 'vm-web-1.toml:1', layer: 'vm web-1' },
        hasSecret: true,
      },
    ],
    trouble,
    remarks: [],
  });
const configSalt = saltsBy(Buffer.alloc(32, 1));

test('an item goes onto the drive inline, root only, with a salt and without where it comes from [A14]', async () => {
  const config = await configForDrive(PLAN, { guestConfig: guestConfig('1'), configSalt });
  const built = () => makeContents({ vm: VM, run: RUN, plan: PLAN, planDigest: planDigest(PLAN), ...config });
  const { manifest, entries, manifestDigest } = built();
  assert.deepEqual(
    manifest.config?.map(({ item, path }) => [item, path]),
    [['db@main', '/config/001-db_main.json']],
  );
  assert.deepEqual(manifest.configRemoved, ['gone']);
  assert.equal(built().manifestDigest, manifestDigest, 'the same bytes again');
  const entry = entries.find(({ path }) => path.startsWith('/config/'));
  assert.ok(entry !== undefined && 'source' in entry && entry.source.kind === 'inline' && entry.mode === 0o400);
  const file = JSON.parse(Buffer.from(entry.source.bytes).toString('utf8'));
  assert.deepEqual(Object.keys(file.item).toSorted(), ['item', 'setting', 'version']);
  assert.match(file.salt, /^[0-9a-f]{64}$/);
  const other = await configForDrive(PLAN, { guestConfig: guestConfig('1'), configSalt: saltsBy(Buffer.alloc(32, 2)) });
  assert.notEqual(other.config?.[0]?.salt, file.salt);
  assert.doesNotMatch(JSON.stringify(manifest), /hunter2/);
});

test('what changed since the plan, or cannot be known any more, makes no drive', async () => {
  const code = async (source: Parameters<typeof configForDrive>[1]) =>
    await configForDrive(PLAN, { configSalt, ...source }).then(
      () => 'a drive',
      (error: unknown) =>
        error instanceof RunError ? `${error.code} ${error.trouble?.kind ?? ''}`.trim() : 'something else',
    );
  assert.equal(await code({ guestConfig: guestConfig('1') }), 'a drive');
  assert.equal(await code({ guestConfig: guestConfig('2') }), 'conflict/config-changed');
  assert.equal(await code({ guestConfig: async () => null }), 'conflict/config-changed');
  assert.equal(
    await code({ guestConfig: guestConfig('1', ['the server is away']) }),
    'refused/guest-config plan-refused',
  );
});

test('the key of the salts is made once, for nobody else to read', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-salt-'));
  t.after(async () => await rm(folder, { recursive: true }));
  const first = (await openConfigSalt(folder))(VM, RUN, 'a');
  assert.equal((await openConfigSalt(folder))(VM, RUN, 'a'), first);
  assert.notEqual((await openConfigSalt(folder))(VM, RUN, 'b'), first);
  assert.equal((await stat(join(folder, 'drive-salt.key'))).mode & 0o777, 0o600);
});
