// What is believed of a guest's configuration.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { RunId, VmId } from '../model/ids.ts';
import type { AppliedConfig } from '../model/inventory.ts';
import type { Plan } from '../model/plan.ts';
import { findConfigFault } from './judge-config.ts';

// The casts hold: both have the form of their kind.
const PLAN: Plan = {
  vm: 'web-1' as VmId,
  run: 'a'.repeat(32) as RunId,
  items: [],
  config: [{ item: 'motd', version: '2', fromVersion: '1', kind: 'file', reboot: false }],
  configRemoved: [{ item: 'gone', version: '1' }],
  leftOut: [],
  vendors: [],
};
const MOTD: AppliedConfig = { item: 'motd', version: '2' };
const NAME: AppliedConfig = { item: 'name', version: '1' };
const REPORTED = [{ item: 'motd', version: '1' }, NAME, { item: 'gone', version: '1' }];

const fault = (fresh: readonly AppliedConfig[], reported: readonly AppliedConfig[] | null = REPORTED) =>
  findConfigFault(PLAN, { config: [...fresh] }, reported === null ? null : { config: [...reported] })?.code ?? null;

test('every planned item at its version, nothing left of what goes, and all else as it was: believed [A10]', () => {
  assert.equal(fault([MOTD, NAME]), null);
  assert.equal(fault([MOTD], null), null, 'what was reported before is not known any more');
});

test('an item that is missing, at another version, changed, listed twice in two ways or not taken back is not believed [A10]', () => {
  assert.equal(fault([NAME]), 'config-missing');
  assert.equal(fault([{ ...MOTD, version: '1' }, NAME]), 'config-differs');
  assert.equal(fault([{ ...MOTD, state: 'changed' }, NAME]), 'config-differs');
  assert.equal(fault([MOTD, { ...MOTD, version: '1' }, NAME]), 'config-differs');
  assert.equal(fault([MOTD, NAME, { item: 'gone', version: '1' }]), 'config-left');
});

test('an update that wrote over what was configured before is found, and what was wrong already is not blamed on it [A10]', () => {
  assert.equal(fault([MOTD, { ...NAME, state: 'changed' }]), 'config-differs');
  assert.equal(fault([MOTD]), 'config-missing');
  const wasWrong = [...REPORTED.filter(({ item }) => item !== 'name'), { ...NAME, state: 'changed' as const }];
  assert.equal(fault([MOTD, { ...NAME, state: 'changed' }], wasWrong), null);
});
