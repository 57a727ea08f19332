// A guest that claims what it has not, against the host that reads its disk beside it (policy `verify`): a real VM, a real agent that
// lies on the wire. The control is the same guest, believed where the policy goes by the agent's word.
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildAgent } from '../../guest-agent/build.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { silentLog } from '../../src/base/log.ts';
import { assertConnected, type House, makeHouse, type TestVm } from '../e2e/harness.ts';

let house: House;
let liar: Buffer;

before(async () => {
  const entry = join(import.meta.dirname, 'verify-lying-agent.ts');
  const agent = await buildAgent({ cacheFolder: defaultCacheFolder(), log: silentLog, entry });
  liar = await readFile(agent.path);
  house = await makeHouse({ version: '1.1.0', installSeconds: 1 });
});
after(async () => {
  await house.close();
});

/** What reading beside a VM must not leave on the host. */
async function leftovers(): Promise<readonly string[]> {
  const list = async (folder: string): Promise<readonly string[]> => await readdir(folder).catch(() => []);
  const looks = await list(join(house.folder, 'data/looks'));
  const views = await list(join(house.runFolder, 'views'));
  const kept = (await list(join(house.folder, 'data/overlays'))).filter((name) => name.startsWith('.view'));
  return [...looks, ...views, ...kept];
}

const refusals = async (vm: TestVm): Promise<readonly string[]> =>
  (await vm.audit()).flatMap(({ record }) => (record.kind === 'refusal' ? [String(record.code)] : []));

test('an honest guest is read beside while it runs, agrees with its disk, and is plugged in; nothing is left behind [A3 A10]', async (t) => {
  const vm = await house.addVm({ policy: { verify: 'disk' } });
  await vm.start();
  const agreed = await vm.hear(/its disk agrees: (\d+) files? of its update as sent/);
  t.diagnostic(agreed.text);
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');
  assert.deepEqual(await leftovers(), []);
});

test('a guest whose agent lies about an update that failed is caught by its disk, and believed where nobody looks [A3 A10]', async () => {
  await house.publish({ version: '1.1.1', behaviour: 'install-fails' });
  const caught = await house.addVm({ policy: { verify: 'disk' }, programs: { '/usr/sbin/pratique-agent': liar } });
  const believed = await house.addVm({ programs: { '/usr/sbin/pratique-agent': liar } });
  await caught.start();
  await caught.reach('quarantined');
  assert.deepEqual(await refusals(caught), ['disk-mismatch']);
  const why = await house.service.whyVm(caught.vm);
  assert.match(why.reason, /disk does not bear out.*bundle\/hello 1\.0\.0 -> 1\.1\.1/);
  assert.match(why.next, /Do not trust this guest/);
  assert.deepEqual(await caught.frames(), []);
  assert.deepEqual(await leftovers(), []);

  await believed.start();
  await believed.reach('connected');
  assert.deepEqual(await refusals(believed), [], 'positive control: on the wire there is nothing wrong with it');
  assert.equal(await believed.served(), '1.0.0', 'and it is a lie');
});

test('a daemon that is killed while it reads leaves nothing in the way: the run goes on on its overlay, the disk is read anew [A10 X4 X5]', async () => {
  await house.publish({ version: '1.2.0' });
  const vm = await house.addVm({ policy: { verify: 'disk', overlay: true } });
  await vm.start();
  await vm.hear(/its disk is read beside it/);
  const qemu = await vm.qemu();
  await house.daemon.kill();
  await house.daemon.start();
  await vm.reach('connected');
  await vm.hear(/overlay is merged into its disk/);
  await assertConnected(vm, '1.2.0');
  assert.deepEqual(await vm.qemu(), qemu, 'the same VM');
  assert.deepEqual(await leftovers(), []);
});
