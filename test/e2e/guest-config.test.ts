// Configuration on a real guest: with software, alone, pushed to a VM that is plugged in, taken back, and rolled back.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { stringify } from 'smol-toml';
import { assertConnected, makeHouse, type TestVm } from './harness.ts';

const MAC = '52:54:00:78:00:02';
/** The harness asks its first VM here; nothing but configuration gives the guest this address. */
const ADDRESS = '10.77.0.2/24';
/** Where the image alone would be: it sends from there, so that a leak would be seen, and nobody asks for it. */
const STALE = '10.77.0.99/24';
const SECRET = 'correct-horse-battery-staple';

type Items = Readonly<Record<string, Readonly<Record<string, unknown>>>>;

const NETWORK: Items = {
  name: { kind: 'hostname', hostname: 'web-1.example.org' },
  lan: { kind: 'network', interfaces: [{ mac: MAC, addresses: [ADDRESS] }] },
};
const page = (content: string, more: object = {}) => ({ kind: 'file', path: '/srv/www/greeting', content, ...more });
const HIDDEN = { kind: 'file', path: '/etc/password', content: SECRET, mode: '0600' };

/** What of the timeline says that the gate was closed since the VM was plugged in first. */
const closings = async (vm: TestVm) => {
  const texts = (await vm.events()).map(({ text }) => text);
  return texts
    .slice(texts.findIndex((text) => text.startsWith('open: ')))
    .filter((text) => text.startsWith('closed: '));
};
const openings = async (vm: TestVm) =>
  (await vm.audit()).map(({ record }) => record).filter(({ kind }) => kind === 'gate-opened');

test('a guest gets software, a name, an address and a file in one run, then only what changes, and keeps what it had when something fails [A10 A12 A13 A14]', async (t) => {
  const guests = await mkdtemp(join(tmpdir(), 'pratique-guests-'));
  t.after(async () => await rm(guests, { recursive: true, force: true }));
  const configure = async (items: Items) => await writeFile(join(guests, 'vm-guest2.toml'), stringify({ items }));
  await configure({ ...NETWORK, greeting: page('one'), hidden: HIDDEN });
  const house = await makeHouse({ version: '1.1.0' }, 'cloud', { configuration: { guestConfigFolder: guests } });
  t.after(house.close);
  const { service } = house;
  const vm = await house.addVm({
    change: (spec) => {
      const { kernel } = spec;
      if (kernel === undefined) return spec;
      return {
        ...spec,
        kernel: { ...kernel, commandLine: kernel.commandLine.replace(/pq\.ip=\S+/, `pq.ip=${STALE}`) },
      };
    },
  });

  await vm.start();
  await vm.hear(/a drive with 1 update and 4 configuration items is attached/);
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');
  assert.equal(await vm.page('/greeting'), 'one');
  const [first] = await openings(vm);
  assert.match(JSON.stringify(first), /"config":\[\{"fromVersion":null,"item":"config\/greeting"/);

  await t.test('a changed file reaches the VM while it stays plugged in [A12]', async () => {
    await configure({ ...NETWORK, greeting: page('two'), hidden: HIDDEN });
    await service.updateVm(vm.vm);
    await vm.hear(/a drive with 1 configuration item is attached .* to a VM that is plugged in/);
    await vm.reach('connected');
    assert.equal(await vm.page('/greeting'), 'two');
    assert.deepEqual(await closings(vm), []);
  });

  await t.test('an item that does not apply takes the whole set back, and the VM goes on as it was [A10]', async () => {
    const broken = { kind: 'file', path: '/etc/broken', content: 'x', apply: [{ restart: 'not-there' }] };
    await configure({ ...NETWORK, greeting: page('three'), hidden: HIDDEN, broken });
    await service.updateVm(vm.vm);
    await vm.reach('connected');
    const why = await service.whyVm(vm.vm);
    assert.match(
      why.reason,
      /Installing config\/broken failed \(apply-failed\): there is no \/etc\/init\.d\/not-there/,
    );
    assert.equal(await vm.page('/greeting'), 'two');
    assert.deepEqual(await closings(vm), []);
  });

  await t.test('where the policy says so the gate closes first, and opens by its own evidence [A11]', async () => {
    await service.setVmPolicy(vm.vm, { set: { configChange: 'gate', install: 'none' }, unset: [], actor: 'ann' });
    await configure({ ...NETWORK, greeting: page('four'), hidden: HIDDEN });
    const before = (await openings(vm)).length;
    await service.updateVm(vm.vm);
    await vm.hear(/^closed: its configuration changes/);
    await vm.reach('connected');
    assert.equal((await openings(vm)).length, before + 1);
    assert.equal(await vm.page('/greeting'), 'four');
  });

  await t.test(
    'alone, at a start: the vendor is not asked, and what is configured no longer is gone [A13]',
    async () => {
      await configure({ ...NETWORK, hidden: { ...HIDDEN, mode: '0640' } });
      await vm.order('reset');
      await vm.hear(/to be configured: 2 items/);
      await vm.reach('connected');
      await assertConnected(vm, '1.1.0');
      assert.match((await vm.page('/greeting')) ?? '', /404 Not Found/);
      const last = JSON.stringify((await openings(vm)).at(-1));
      assert.match(last, /"configRemoved":\[\{"item":"config\/greeting"/);
      assert.match(last, /"vendors":\[\]/);
    },
  );

  await t.test('trouble with the sources keeps the VM gated and is told', async () => {
    await writeFile(join(guests, 'vm-guest2.toml'), 'this is no TOML');
    await vm.order('reset');
    await vm.hear(/^closed: guest reset/);
    await vm.reach('quarantined');
    const why = await service.whyVm(vm.vm);
    assert.match(why.reason, /What is configured for it cannot be applied: .*vm-guest2\.toml/);
    assert.match(why.next, /pratique config show guest2/);
  });

  await t.test('nobody was told what is configured', async () => {
    const said = JSON.stringify([
      await vm.events(),
      await vm.audit(),
      await service.showVm(vm.vm),
      await service.planVm(vm.vm).catch(() => null),
    ]);
    assert.doesNotMatch(said, new RegExp(SECRET));
  });
});
