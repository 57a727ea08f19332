// Scripted agents, honest and not, against the real host end, the real judge and a host that asks as the runner does.
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { digestOf } from '../../src/base/digest.ts';
import { canonicalJson, type Digest } from '../../src/base/digest-text.ts';
import { silentLog } from '../../src/base/log.ts';
import { isEvidence, type Judgement, judge } from '../../src/confirm/judge.ts';
import { AGENT_EXAMPLES, MANIFEST_EXAMPLE } from '../../src/guest/examples.ts';
import { type GuestChannel, type GuestEvent, openGuestChannel } from '../../src/guest/session.ts';
import type { Inventory } from '../../src/model/inventory.ts';
import type { Manifest } from '../../src/model/manifest.ts';
import { type Plan, planDigest } from '../../src/model/plan.ts';
import { DEFAULT_POLICY } from '../../src/model/policy.ts';
import {
  type AgentDisk,
  type Behaviour,
  makeAgentDisk,
  runScriptedAgent,
  type ScriptedAgent,
} from '../fakes/scripted-agent.ts';
import { BOOT, listen, until } from './session-harness.ts';

const { vm, run } = MANIFEST_EXAMPLE;
const STALE: Inventory = AGENT_EXAMPLES.inventory.inventory;
const [ITEM] = MANIFEST_EXAMPLE.items;
const NEXT_BOOT = BOOT.replace('0', '1');

function planOf(items: Manifest['items']): Plan {
  return {
    vm,
    run,
    leftOut: [],
    vendors: [],
    items: items.map(({ id, files, ...release }) => ({
      id,
      fromVersion: '1.0.0',
      release: {
        ...release,
        vendor: 'own',
        kind: 'security',
        requires: [],
        advisories: [],
        artifact: { name: 'a', digest: files[0]?.digest ?? digestOf(''), sizeBytes: 1, location: 'a' },
      },
    })),
  };
}

/** Asks what the runner asks, in its order, and judges; the rest of the host is left out. */
class MiniHost {
  readonly events: GuestEvent[] = [];
  readonly plan: Plan;
  readonly manifest: string;
  readonly channel: GuestChannel;
  readonly offered: Digest[] = [];
  readonly judgements: Judgement[] = [];
  failure: string | null = null;
  reported: Inventory | null = null;

  constructor(socketPath: string, items: Manifest['items']) {
    this.plan = planOf(items);
    this.manifest = canonicalJson({ ...MANIFEST_EXAMPLE, items, planDigest: planDigest(this.plan) });
    const onEvent = (event: GuestEvent) => {
      this.events.push(event);
      this.#on(event);
    };
    this.channel = openGuestChannel({ vm, socketPath, clock: systemClock, log: silentLog, onEvent });
  }

  /** The first one: an agent may confirm again. */
  get judgement(): Judgement | null {
    return this.judgements[0] ?? null;
  }

  get refusals(): readonly string[] {
    return this.events.flatMap((event) => (event.kind === 'refused' ? [event.code] : []));
  }

  #on(event: GuestEvent): void {
    if (event.kind === 'opened') this.channel.send({ type: 'ask-inventory' });
    if (event.kind === 'misbehaved') this.failure = event.code;
    if (event.kind !== 'message') return;
    const { body } = event;
    const digest = digestOf(this.manifest);
    if (body.type === 'inventory') this.#onInventory(body.inventory, digest);
    if (body.type === 'drive' && body.state === 'refused') this.failure = body.code ?? 'refused';
    if (body.type === 'drive' && body.state === 'released') this.#askConfirm();
    if (body.type === 'installed' && body.rebootRequired) this.channel.send({ type: 'reboot', run });
    if (body.type === 'installed' && !body.rebootRequired) {
      this.channel.send({ type: 'release', run, manifestDigest: digest });
    }
    if (body.type === 'confirm') {
      const judgement = judge({
        vm,
        run,
        plan: this.plan,
        planDigest: planDigest(this.plan),
        session: this.channel.session(),
        confirmation: body,
        manifestDigests: this.offered,
        reported: this.reported,
        policy: DEFAULT_POLICY,
        nowMs: 1,
      });
      this.judgements.push(judgement);
    }
  }

  #onInventory(inventory: Inventory, digest: Digest): void {
    this.reported ??= inventory;
    if (this.plan.items.length === 0) {
      this.#askConfirm();
      return;
    }
    this.offered.push(digest);
    this.channel.send({
      type: 'offer',
      run,
      planDigest: planDigest(this.plan),
      manifestDigest: digest,
      label: 'PRATIQUE',
    });
  }

  #askConfirm(): void {
    const manifestDigest = this.offered.at(-1) ?? null;
    this.channel.send({ type: 'ask-confirm', run, planDigest: planDigest(this.plan), manifestDigest });
  }
}

type Play = { readonly host: MiniHost; readonly agents: readonly ScriptedAgent[]; readonly disk: AgentDisk };

/** An agent of the given behaviour on every connection; after a reboot an agent of the next boot with the same disk. */
async function play(t: TestContext, behaviour: Behaviour, items: Manifest['items'], stale = STALE): Promise<Play> {
  const { server, path } = await listen(t);
  const disk = makeAgentDisk(stale);
  const agents: ScriptedAgent[] = [];
  const boot = () => (agents.length === 0 ? BOOT : NEXT_BOOT);
  server.on('connection', (socket) => {
    const onReboot = () => socket.end();
    agents.push(
      runScriptedAgent(socket, { disk, boot: boot(), behaviour, readManifest: () => host.manifest, onReboot }),
    );
  });
  const host = new MiniHost(path, items);
  t.after(() => {
    host.channel.close();
    for (const agent of agents) agent.close();
  });
  await until('the host connects', () => agents.length > 0);
  return { host, agents, disk };
}

const ITEMS = ITEM === undefined ? [] : [ITEM];

test('an honest agent installs, and its confirmation becomes evidence [A10]', async (t) => {
  const { host, disk } = await play(t, 'honest', ITEMS);
  await until('the judge has spoken', () => host.judgement !== null);
  assert.equal(host.judgement?.kind, 'evidence');
  assert.ok(host.judgement?.kind === 'evidence' && isEvidence(host.judgement.evidence));
  assert.equal(disk.inventory.products[0]?.version, '1.1.0');
  assert.deepEqual(host.refusals, []);
});

test('an up-to-date agent confirms an empty plan [A10]', async (t) => {
  const { host } = await play(t, 'up-to-date', []);
  await until('the judge has spoken', () => host.judgement !== null);
  assert.equal(host.judgement?.kind, 'evidence');
});

test('an agent that has to reboot confirms from its next boot [A10]', async (t) => {
  const items = ITEMS.map((item) => ({ ...item, install: { ...item.install, reboot: true } }) as typeof item);
  const { host, agents } = await play(t, 'honest', items);
  await until('the judge has spoken', () => host.judgement !== null);
  assert.equal(host.judgement?.kind, 'evidence');
  assert.equal(agents.length, 2);
  assert.equal(host.channel.session()?.boot, NEXT_BOOT);
});

test('an honest agent with 15,000 packages reports and confirms in chunks [A6]', async (t) => {
  const products = Array.from({ length: 15_000 }, (_, n) => ({
    ecosystem: 'debian' as const,
    product: `lib${n}`,
    version: '1',
    arch: 'amd64',
    state: 'installed' as const,
  }));
  const { host } = await play(t, 'honest', ITEMS, { ...STALE, products: [...STALE.products, ...products] });
  await until('the judge has spoken', () => host.judgement !== null);
  assert.equal(host.judgement?.kind, 'evidence');
});

const LIES: readonly (readonly [Behaviour, string])[] = [
  ['forged-inventory', 'version-differs'],
  ['forged-plan-digest', 'wrong-plan'],
  ['forged-manifest-digest', 'wrong-manifest'],
  ['install-fails', 'not-installed'],
  ['confirm-unasked', 'wrong-run'],
];
for (const [behaviour, code] of LIES) {
  test(`an agent that is ${behaviour} is heard out and not believed [A10] [A11]`, async (t) => {
    const { host } = await play(t, behaviour, ITEMS);
    await until('the judge has spoken', () => host.judgement !== null);
    assert.ok(host.judgement?.kind === 'refused');
    assert.equal(host.judgement.code, code);
    assert.deepEqual(host.refusals, [], 'it kept the rules of the channel');
  });
}

test('an agent that refuses the drive says why [A9]', async (t) => {
  const { host } = await play(t, 'drive-refused', ITEMS);
  await until('the host knows', () => host.failure !== null);
  assert.equal(host.failure, 'manifest-mismatch');
});

test('an agent that replays everything gets no further by it, and no second judgement [A11]', async (t) => {
  const { host } = await play(t, 'replay', ITEMS);
  await until('the judge has spoken', () => host.judgement !== null);
  await until(
    'the last copy is refused',
    () => host.refusals.length >= host.events.filter((e) => e.kind === 'message').length,
  );
  assert.ok(host.refusals.every((code) => code === 'out-of-order'));
  const confirms = host.events.filter((event) => event.kind === 'message' && event.body.type === 'confirm');
  assert.equal(confirms.length, 1);
});

const STUCK: readonly (readonly [Behaviour, string])[] = [
  ['wrong-boot', 'wrong-boot'],
  ['wrong-nonce', 'stale-session'],
  ['oversized', 'too-long'],
  ['two-agents', 'stale-session'],
  ['reorder', 'out-of-order'],
];
for (const [behaviour, code] of STUCK) {
  test(`what an agent that is ${behaviour} says out of place is refused as ${code} [A11]`, async (t) => {
    const { host } = await play(t, behaviour, ITEMS);
    await until('a refusal', () => host.refusals.length > 0);
    assert.equal(host.refusals[0], code);
    assert.equal(host.failure, null);
  });
}

for (const [behaviour, code] of [
  ['flood', 'too-many-lines'],
  ['rubbish', 'too-many-refusals'],
] as const) {
  test(`an agent that pours ${behaviour} is cut off and judged by nobody [A10]`, async (t) => {
    const { host, agents } = await play(t, behaviour, ITEMS);
    await until('it is cut off', () => host.failure !== null);
    assert.equal(host.failure, code);
    await agents[0]?.done;
    assert.equal(host.judgement, null);
    assert.equal(agents.length, 1, 'the host did not come back');
  });
}

for (const behaviour of ['silent', 'silent-after-inventory', 'deaf'] as const) {
  test(`an agent that is ${behaviour} leads to nothing, in quiet [A11]`, async (t) => {
    const { host } = await play(t, behaviour, ITEMS);
    await systemClock.sleep(100);
    assert.deepEqual([host.judgement, host.failure, host.refusals.length], [null, null, 0]);
  });
}
