// Which configuration is planned: what differs, what is configured no longer, and when there is no plan at all.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inventory, product, release, vendor } from '../../test/fakes/planner.ts';
import { makeFakeClock } from '../../test/simulator/clock.ts';
import type { GuestConfigItem, ResolvedGuestConfig } from '../model/guest-config.ts';
import type { AppliedConfig, Inventory } from '../model/inventory.ts';
import { configIdsOf, type Plan, planDigest, planStepCount } from '../model/plan.ts';
import { DEFAULT_POLICY, type Policy } from '../model/policy.ts';
import { makePlan } from './planner.ts';
import { RUN } from './samples.ts';

const SECRET = 'correct-horse';
const VM = 'vm1' as Parameters<typeof makePlan>[0]['vm']; // The form that the brand promises.

const file = (item: string, version: string, more: Partial<GuestConfigItem> = {}): GuestConfigItem => ({
  item,
  version,
  setting: { kind: 'file', file: { path: `/etc/${item}`, content: SECRET } },
  ...more,
});

function resolved(items: readonly GuestConfigItem[], trouble: readonly string[] = []): ResolvedGuestConfig {
  const origin = { source: 'file', at: 'default.toml:1', layer: 'default' } as const;
  return { items: items.map((item) => ({ ...item, origin, hasSecret: true })), trouble, remarks: [] };
}

type Wishes = {
  readonly configuration: ResolvedGuestConfig | null;
  readonly applied?: readonly AppliedConfig[];
  readonly policy?: Partial<Policy>;
  readonly knowsConfig?: boolean;
  readonly failedBefore?: readonly { readonly item: string; readonly version: string }[];
};

async function ask({ configuration, applied = [], policy = {}, knowsConfig = true, failedBefore = [] }: Wishes) {
  const guest = inventory(product('hello', '1.0.0'));
  const known: Inventory = {
    ...guest,
    config: [...applied],
    abilities: { ...guest.abilities, ...(knowsConfig ? { config: true } : {}) },
  };
  return await makePlan({
    vm: VM,
    run: RUN,
    inventory: known,
    policy: { ...DEFAULT_POLICY, ...policy },
    vendors: [vendor([release('hello', '1.1.0')])],
    configuration,
    failedBefore,
    clock: makeFakeClock(),
  });
}

async function plan(wishes: Wishes): Promise<Plan> {
  const answer = await ask(wishes);
  assert.equal(answer.kind, 'plan', JSON.stringify(answer));
  return answer.plan;
}

async function refusal(wishes: Wishes): Promise<string> {
  const answer = await ask(wishes);
  assert.ok(answer.kind === 'refused' && answer.reason.kind === 'plan-refused', JSON.stringify(answer));
  return `${answer.reason.code}: ${answer.reason.detail}`;
}

test('what is new, at another version or changed in the guest is planned beside the updates; what is right is not [A13 A14]', async () => {
  const reboot = { apply: [{ reboot: true as const }] };
  const configuration = resolved([
    file('new', '1'),
    file('old', '2', reboot),
    file('changed', '1'),
    file('right', '1'),
  ]);
  const applied: AppliedConfig[] = [
    { item: 'old', version: '1' },
    { item: 'changed', version: '1', state: 'changed' },
    { item: 'right', version: '1' },
    { item: 'gone', version: '7' },
  ];
  const made = await plan({ configuration, applied });
  assert.deepEqual(made.config, [
    { item: 'new', version: '1', fromVersion: null, kind: 'file', reboot: false },
    { item: 'old', version: '2', fromVersion: '1', kind: 'file', reboot: true },
    { item: 'changed', version: '1', fromVersion: '1', kind: 'file', reboot: false },
  ]);
  assert.deepEqual(made.configRemoved, [{ item: 'gone', version: '7' }]);
  assert.deepEqual(configIdsOf(made), ['config/new', 'config/old', 'config/changed', 'config/gone']);
  assert.equal(planStepCount(made), 5);
  assert.doesNotMatch(JSON.stringify(made), new RegExp(SECRET));
});

test('a host that configures nothing for a VM takes nothing back, and its plans are what they were', async () => {
  const none = await plan({ configuration: null, applied: [{ item: 'gone', version: '7' }] });
  assert.equal('config' in none || 'configRemoved' in none, false);
  assert.equal(planDigest(none), planDigest(await plan({ configuration: resolved([]) })));
});

test('with `install = "none"` only configuration is planned, and no vendor is asked [A13]', async () => {
  const made = await plan({ configuration: resolved([file('a', '1')]), policy: { install: 'none', vendors: [] } });
  assert.deepEqual([made.items, made.vendors, planStepCount(made)], [[], [], 1]);
  assert.match(
    await refusal({ configuration: null, policy: { install: 'none' } }),
    /^guest-config: .*nothing is configured/,
  );
});

test('trouble with the sources refuses the plan with the first of it [A14]', async () => {
  const configuration = resolved([file('a', '1')], ['vm-web.toml:3: no such value', 'the server is away']);
  assert.equal(await refusal({ configuration }), 'guest-config: vm-web.toml:3: no such value (and 1 more)');
});

test('an agent that knows no configuration is told of, unless there is none to apply', async () => {
  const knowsConfig = false;
  assert.match(
    await refusal({ configuration: resolved([file('a', '1')]), knowsConfig }),
    /^old-agent: its agent 1\.0\.0 cannot/,
  );
  assert.equal(planStepCount(await plan({ configuration: resolved([]), knowsConfig })), 1);
});

test('a version that was rolled back on this VM is not tried again by itself [X5]', async () => {
  const failedBefore = [{ item: 'config/a', version: '2' }];
  assert.match(
    await refusal({ configuration: resolved([file('a', '2')]), failedBefore }),
    /^guest-config: config\/a 2 failed/,
  );
  assert.equal(planStepCount(await plan({ configuration: resolved([file('a', '3')]), failedBefore })), 2);
});
