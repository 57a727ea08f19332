// What the demonstration makes of its findings, without starting a VM.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DemoDocument } from './document.ts';
import { remarksOn } from './pending.ts';
import { brokenPromises } from './promises.ts';
import { SCENARIO_TABLE } from './scenarios.ts';
import { parsePages } from './served.ts';

const KEPT: DemoDocument = {
  vm: 'demo',
  guest: 'debian',
  scenario: 'kernel',
  state: 'connected',
  installed: { nginx: '2', 'linux-image-cloud-amd64': '6.1.2' },
  latest: { nginx: '2', 'linux-image-cloud-amd64': '6.1.2' },
  framesBeforePlug: 0,
  framesControl: 3,
  gate: { linkUpAtMs: 90_100, confirmedAtMs: 90_000 },
  timelineMs: { booting: 1, rebooting: 5, connected: 9 },
  evidence: {},
  why: { reason: 'It confirmed.', next: 'Nothing to do.' },
  served: { nginx: '2', 'linux-image-cloud-amd64': '6.1.2' },
  kernel: { before: '6.1.0-1', after: '6.1.0-2' },
  configured: null,
  applicationStartedMs: 90_000,
  remarks: [],
  daemonKilled: false,
};
const kernel = (change: Partial<DemoDocument>) => brokenPromises(SCENARIO_TABLE.kernel, { ...KEPT, ...change });

test('a kernel run that shows all it promised breaks no promise', () => {
  assert.deepEqual(kernel({}), []);
});

test('each promise of the kernel run can be broken', () => {
  const broken: readonly (readonly [Partial<DemoDocument>, RegExp])[] = [
    [{ state: 'quarantined' }, /ended quarantined/],
    [{ framesBeforePlug: 1 }, /1 frames/],
    [{ framesControl: 0 }, /control/],
    [{ installed: { ...KEPT.installed, nginx: '1' } }, /not the latest/],
    [{ served: { ...KEPT.served, nginx: '1' } }, /own page says/],
    [{ served: null }, /own page says/],
    [{ kernel: { before: '6.1.0-1', after: '6.1.0-1' } }, /still 6\.1\.0-1/],
    [{ kernel: { before: '6.1.0-1', after: null } }, /nobody said/],
    [{ timelineMs: { booting: 1, connected: 9 } }, /not rebooted/],
    [{ applicationStartedMs: 60_000 }, /application/],
  ];
  for (const [change, words] of broken) {
    const sentences = kernel(change);
    assert.equal(sentences.length, 1, `${JSON.stringify(change)}: ${sentences.join('; ')}`);
    assert.match(sentences[0] ?? '', words);
  }
});

test('each promise of the configured run can be broken [A13 A14]', () => {
  const probes = { probesBeforePlug: 4, answersBeforePlug: 0, answersAfterPlug: 1 };
  const kept = { address: '10.77.0.2', ...probes, items: ['a', 'b', 'c'] };
  const told = (change: Partial<typeof kept> | null) =>
    brokenPromises(SCENARIO_TABLE.configured, { ...KEPT, configured: change === null ? null : { ...kept, ...change } });
  assert.deepEqual(told({}), []);
  assert.match(told({ probesBeforePlug: 0 }).join(), /nobody asked/);
  assert.match(told({ answersBeforePlug: 1 }).join(), /1 questions were answered before/);
  assert.match(told({ answersAfterPlug: 0 }).join(), /was not served/);
  assert.match(told({ items: ['a'] }).join(), /names 1 configured items/);
  assert.equal(told(null).length, 3);
});

test("the guest's pages give versions, kernel and start", () => {
  const facts = parsePages('kernel 6.1.0-2-cloud-amd64\nstarted 1700000000\npackage nginx 1.22.1-9\npackage jq 1.6\n');
  assert.deepEqual(facts, {
    versions: { nginx: '1.22.1-9', jq: '1.6' },
    kernel: '6.1.0-2-cloud-amd64',
    startedAtMs: 1_700_000_000_000,
  });
  assert.deepEqual(parsePages('jq 1.6\nzip 3.0\npackage hello 1.1.0').versions, {
    jq: '1.6',
    zip: '3.0',
    hello: '1.1.0',
  });
});

const security = (...names: readonly string[]) => names.map((product) => ({ product, kind: 'security' as const }));

test('an archive with three security updates needs no word, one with fewer is told with what there is', () => {
  const plan = { bootsNewKernel: false };
  assert.deepEqual(remarksOn(security('jq', 'zip', 'unzip'), plan), []);
  assert.match(remarksOn(security('jq', 'zip'), plan)[0] ?? '', /2 security updates \(jq, zip\).*hello completes/);
  assert.match(remarksOn([{ product: 'jq', kind: 'fix' }], plan)[0] ?? '', /no security update/);
});

test('a day without a newer kernel is told, other updates or not', () => {
  const plan = { bootsNewKernel: true };
  assert.match(remarksOn(security('nginx', 'jq', 'zip'), plan)[0] ?? '', /no newer kernel/);
  assert.deepEqual(remarksOn(security('linux-image-cloud-amd64'), plan), []);
});
