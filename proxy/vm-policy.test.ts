// Which policy holds for a VM, what a change may do, and that what was stored before is not lost.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { openDatabase } from '../src/base/sqlite.ts';
import type { VmSpec } from '../src/hypervisor/vm-spec.ts';
import { DEFAULT_POLICY } from '../src/model/policy.ts';
import {
  FAILED_UPDATE_MIGRATIONS,
  JOURNAL_MIGRATIONS,
  OWN_POLICY_MIGRATIONS,
  openJournal,
} from '../src/update/journal.ts';
import { SAMPLE_SPEC, vmId } from '../test/fakes/service.ts';
import type { Config } from './config.ts';
import { changedPolicy, changeText, checkPolicyFits, groupByName, policyOf, policyRemarks } from './vm-policy.ts';

const config: Pick<Config, 'policyOfFiles' | 'groups'> = {
  policyOfFiles: { install: 'security', overlay: true },
  groups: {
    web: { vms: ['web-*', 'shop'], policy: { install: 'all', holds: ['nginx'] } },
    test: { vms: ['web-test-*'], policy: { leftOut: 'admit' } },
    db: { vms: [], policy: { runDeadlineMs: 3_600_000 } },
  },
};
const alone = { own: {}, group: null };

test('a VM is in the group that it was put into, else in the one whose pattern fits its name best', () => {
  assert.equal(groupByName(config.groups, 'web-1'), 'web');
  assert.equal(groupByName(config.groups, 'web-test-1'), 'test');
  assert.equal(groupByName(config.groups, 'shop'), 'web');
  assert.equal(groupByName(config.groups, 'shop2'), null);
  assert.equal(policyOf(config, 'web-1', { own: {}, group: 'db' }).group, 'db');
  const { policy, from, trouble } = policyOf(config, 'web-1', { own: { install: 'security' }, group: null });
  assert.deepEqual([policy.install, policy.holds, policy.overlay, policy.apt], ['security', ['nginx'], true, 'fast']);
  assert.deepEqual([from.install, from.holds, from.overlay, from.apt], ['vm', 'group', 'default', 'built-in']);
  assert.equal(trouble, null);
});

test('a VM that somebody else starts cannot be verified on its disk, wherever its policy comes from [A10]', () => {
  const attached: VmSpec = {
    format: 'pratique.vm/1',
    kind: 'attached',
    vm: vmId('theirs'),
    qmpSocket: '/run/theirs/qmp',
    channelSocket: '/run/theirs/agent',
    nics: [],
  };
  const wantsDisk = policyOf({ ...config, policyOfFiles: { verify: 'disk' } }, 'theirs', alone);
  assert.throws(() => checkPolicyFits(attached, wantsDisk), { code: 'usage/policy', message: /verify=disk.*not ours/ });
  checkPolicyFits(attached, policyOf(config, 'theirs', alone));
  checkPolicyFits(SAMPLE_SPEC, wantsDisk);
});

test('a group that is gone from the configuration is trouble: what it said must not be lost unnoticed', () => {
  const { trouble, group } = policyOf(config, 'x', { own: {}, group: 'webb' });
  assert.equal(group, 'webb');
  assert.match(trouble ?? '', /no group webb/);
  assert.match(policyOf(config, 'x', { own: {}, group: 'constructor' }).trouble ?? '', /no group constructor/);
});

test('a change to a group that is not there, or to a policy that makes no sense, is refused; others are merged', () => {
  const change = { set: {}, unset: [] };
  assert.throws(() => changedPolicy(config, 'x', alone, { ...change, group: 'webb' }), {
    code: 'not-found/group',
    next: 'did you mean web?',
  });
  assert.throws(() => changedPolicy(config, 'x', alone, { ...change, set: { install: 'listed' } }), {
    code: 'usage/policy',
  });
  const before = { own: { overlay: false, holds: ['jq'] }, group: 'db' };
  assert.deepEqual(changedPolicy(config, 'x', before, { set: { apt: 'vendor-verified' }, unset: ['holds'] }), {
    own: { overlay: false, apt: 'vendor-verified' },
    group: 'db',
  });
  assert.deepEqual(before.own, { overlay: false, holds: ['jq'] }, 'what was before is left as it is');
  assert.equal(changedPolicy(config, 'x', before, { ...change, group: null }).group, null);
  const lost = { own: {}, group: 'gone' };
  assert.equal(
    changedPolicy(config, 'x', lost, { set: { overlay: true }, unset: [] }).group,
    'gone',
    'other keys may change',
  );
});

test('a change is one line of the record', () => {
  const text = changeText({
    set: { holds: ['a', 'b'], runDeadlineMs: 60_000 },
    unset: ['metadataAgeMaxMs'],
    group: null,
  });
  assert.equal(text, 'holds=a,b runDeadline=1m metadataAge= group=');
});

test('what weakens the gate, and patterns that match nothing, are remarked upon', () => {
  assert.ok(SAMPLE_SPEC.kind === 'managed');
  const sample = SAMPLE_SPEC;
  const [nic] = sample.nics;
  assert.ok(nic !== undefined);
  const given = policyOf(config, 'x', { own: { holds: ['nginx', 'jqq'] }, group: null });
  const inventory = {
    os: { id: 'debian', versionId: '12', arch: 'amd64' },
    products: [{ ecosystem: 'debian', product: 'nginx', version: '1', state: 'installed' } as const],
    config: [],
    agent: { version: '1', digest: null },
    abilities: { drives: [], compressions: [] },
    freeBytes: 0,
    rebootRequired: false,
    lastShutdown: null,
  };
  const remarks = (gated: readonly boolean[]) => {
    const nics = gated.map((is, index) => ({ ...nic, id: `net${index}`, gated: is }));
    return policyRemarks({ ...sample, nics }, given, inventory).join('; ');
  };
  assert.match(remarks([true]), /^Nothing that it has matches jqq of its policy's holds$/);
  assert.match(remarks([true, false]), /NIC net1 is never unplugged.*both on/);
  assert.match(remarks([false]), /None of its NICs is gated/);
});

test('a policy that the first version stored whole is what the VM has of its own', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-policy-'));
  const path = join(folder, 'pratique.db');
  const before = openDatabase(path, [...JOURNAL_MIGRATIONS, ...FAILED_UPDATE_MIGRATIONS]);
  before
    .prepare('INSERT INTO vm (name, uid, spec, spec_digest, policy) VALUES (?, ?, ?, ?, ?)')
    .run('old', 7, JSON.stringify(SAMPLE_SPEC), 'd', JSON.stringify({ install: 'security', vendors: ['deb'] }));
  before
    .prepare('INSERT INTO run_state (vm, step, since_ms, state) VALUES (?, ?, ?, ?)')
    .run('old', 0, 0, JSON.stringify({ kind: 'off' }));
  before.close();
  const after = openDatabase(path, [...JOURNAL_MIGRATIONS, ...FAILED_UPDATE_MIGRATIONS, ...OWN_POLICY_MIGRATIONS]);
  const journal = openJournal(after);
  const [stored] = journal.load();
  assert.deepEqual([stored?.own, stored?.group], [{ install: 'security', vendors: ['deb'] }, null]);
  journal.savePolicy(vmId('old'), { own: { overlay: true }, group: 'web' });
  const [changed] = journal.load();
  assert.deepEqual([changed?.own, changed?.group], [{ overlay: true }, 'web']);
  const { policy } = policyOf(config, 'old', { own: changed?.own ?? {}, group: changed?.group ?? null });
  assert.equal(policy.metadataAgeMaxMs, DEFAULT_POLICY.metadataAgeMaxMs);
  after.close();
  await rm(folder, { recursive: true });
});
