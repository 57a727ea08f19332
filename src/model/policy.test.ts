// What holds for a VM, from four layers of policy.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DEFAULT_POLICY, faultOfPolicy, matchesProduct, POLICY_KEYS, resolvePolicy } from './policy.ts';

test("a VM's own keys override its group's, which override the default, which overrides what is built in", () => {
  const { policy, from } = resolvePolicy({
    default: { install: 'security', overlay: true, holds: ['a'] },
    group: { install: 'listed', packages: ['nginx'], holds: ['b'] },
    vm: { install: 'all', holds: [] },
  });
  assert.deepEqual(
    [policy.install, policy.overlay, policy.packages, policy.holds, policy.apt],
    ['all', true, ['nginx'], [], 'fast'],
  );
  assert.deepEqual(
    [from.install, from.overlay, from.packages, from.holds, from.apt],
    ['vm', 'default', 'group', 'vm', 'built-in'],
  );
  assert.deepEqual(Object.keys(from), POLICY_KEYS);
});

test('without a word from anybody the built-in policy holds, and every key says so', () => {
  const { policy, from } = resolvePolicy({ default: {}, group: {}, vm: {} });
  assert.deepEqual(policy, DEFAULT_POLICY);
  assert.deepEqual(new Set(Object.values(from)), new Set(['built-in']));
});

test('a pattern is a name, or the beginning of names', () => {
  assert.ok(matchesProduct(['linux-image-*', 'jq'], 'linux-image-amd64'));
  assert.ok(matchesProduct(['linux-image-*', 'jq'], 'jq'));
  assert.ok(!matchesProduct(['linux-image-*', 'jq'], 'jq-doc'));
  assert.ok(matchesProduct(['*'], 'anything'));
  assert.ok(!matchesProduct([], 'anything'));
});

test('a policy that installs what is listed and lists nothing is no policy', () => {
  assert.match(faultOfPolicy({ ...DEFAULT_POLICY, install: 'listed' }) ?? '', /lists no packages/);
  assert.equal(faultOfPolicy({ ...DEFAULT_POLICY, install: 'listed', packages: ['jq'] }), null);
  assert.equal(faultOfPolicy(DEFAULT_POLICY), null);
});
