// Drift of configuration: missing, at another version, changed by somebody, configured no longer.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ResolvedGuestConfig } from '../model/guest-config.ts';
import { findConfigDrift } from './config-drift.ts';

const item = (name: string, version: string): ResolvedGuestConfig['items'][number] => ({
  item: name,
  version,
  setting: { kind: 'file', file: { path: '/etc/x', content: 'hunter2' } },
  origin: { source: 'file', at: 'default.toml:1', layer: 'default' },
  hasSecret: true,
});

test('each way in which an item is not as configured is told, and one that is right is not [A6]', () => {
  const config = [
    { item: 'right', version: '1' },
    { item: 'old', version: '1' },
    { item: 'touched', version: '1', state: 'changed' as const },
    { item: 'gone', version: '4' },
  ];
  const items = [item('right', '1'), item('old', '2'), item('touched', '1'), item('new', '1')];
  const drift = findConfigDrift({ config }, { items, trouble: [] });
  assert.deepEqual(findConfigDrift({ config }, { items, trouble: ['the server is away'] }), []);
  const told = drift.map(({ product, installed, latest, why }) => [product, installed ?? '-', latest, why].join(' '));
  assert.deepEqual(told, [
    'old 1 2 older',
    'touched 1 1 broken',
    'new - 1 missing',
    'gone 4 (configured no longer) older',
  ]);
  assert.match(drift[1]?.remark ?? '', /changed in the guest/);
  assert.doesNotMatch(JSON.stringify(drift), /hunter2/);
});

test('a host that configures nothing for a VM finds no drift in what the VM has', () => {
  assert.deepEqual(findConfigDrift({ config: [{ item: 'gone', version: '4' }] }, null), []);
});
