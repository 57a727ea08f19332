// A kernel counts as installed when it runs: what the judge asks of a plan with a kernel in it, and of which guests it asks nothing.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Digest } from '../base/digest-text.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { InstalledProduct, Os } from '../model/inventory.ts';
import { type Plan, planDigest } from '../model/plan.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import { judge } from './judge.ts';

const OLD = '6.1.0-37-amd64';
const NEW = '6.1.0-41-amd64';
const digest = (letter: string): Digest => letter.repeat(64) as Digest; // 64 of these letters have the form of one.

function kernel(release: string, version: string): InstalledProduct {
  return { ecosystem: 'debian', product: `linux-image-${release}`, version, arch: 'amd64', state: 'installed' };
}

/** What the judge says when the plan installed this kernel and the guest then shows these kernels and this one running. */
function judgeKernel(planned: InstalledProduct, products: readonly InstalledProduct[], running: Partial<Os>): string {
  const { product, version } = planned;
  const run = 'a'.repeat(32) as RunId; // Both texts have the form of their id.
  const vm = 'web-1' as VmId;
  const artifact = { name: 'k.deb', digest: digest('3'), sizeBytes: 1, location: 'k' };
  const about = { vendor: 'debian', ecosystem: 'debian', product, version, arch: 'amd64', kind: 'security' } as const;
  const release = { ...about, requires: [], advisories: [], artifact, install: { action: 'debian-package' as const } };
  const id = `debian/${product}:amd64`;
  const plan: Plan = { vm, run, items: [{ id, fromVersion: null, release }], leftOut: [], vendors: [] };
  const session = { nonce: 'b'.repeat(32), boot: '0b8c1d52-7c6e-4f0a-9a51-2f6f1f0d3c44' };
  const judged = judge({
    ...{ vm, run, plan, planDigest: planDigest(plan), session, manifestDigests: [digest('1')] },
    ...{ reported: null, policy: DEFAULT_POLICY, nowMs: 1 },
    confirmation: {
      ...session,
      run,
      planDigest: planDigest(plan),
      manifestDigest: digest('1'),
      results: [{ item: id, outcome: 'installed', durationMs: 1 }],
      inventory: {
        os: { id: 'debian', versionId: '12', arch: 'amd64', ...running },
        products: [...products],
        config: [],
        agent: { version: '1', digest: null },
        abilities: { drives: [], compressions: [] },
        freeBytes: 1,
        rebootRequired: false,
        lastShutdown: null,
      },
    },
  });
  return judged.kind === 'refused' ? judged.code : judged.kind;
}

const [old, planned] = [kernel(OLD, '6.1.140-1'), kernel(NEW, '6.1.158-1')];

test('a guest that runs the kernel of the plan, or a newer one, is believed [A10]', () => {
  assert.equal(judgeKernel(planned, [old, planned], { kernel: NEW, kernelVersion: '6.1.158-1' }), 'evidence');
  const newer = kernel('6.1.0-42-amd64', '6.1.159-1');
  assert.equal(judgeKernel(planned, [old, planned, newer], { kernel: '6.1.0-42-amd64' }), 'evidence');
});

test('a guest that still runs the kernel before is refused, whatever it says about reboots [A10]', () => {
  assert.equal(judgeKernel(planned, [old, planned], { kernel: OLD, kernelVersion: '6.1.140-1' }), 'old-kernel');
});

test('a kernel rebuilt under the same name counts only once that build runs', () => {
  const rebuilt = kernel(OLD, '6.1.147-1');
  assert.equal(judgeKernel(rebuilt, [rebuilt], { kernel: OLD, kernelVersion: '6.1.140-1' }), 'old-kernel');
  assert.equal(judgeKernel(rebuilt, [rebuilt], { kernel: OLD, kernelVersion: '6.1.147-1' }), 'evidence');
  assert.equal(
    judgeKernel(rebuilt, [rebuilt], { kernel: OLD }),
    'evidence',
    'a kernel that does not say is not doubted',
  );
});

test('a guest whose kernel comes from its host, or is of another kind, is asked nothing', () => {
  assert.equal(judgeKernel(planned, [planned], { kernel: OLD }), 'evidence');
  assert.equal(judgeKernel(planned, [planned], {}), 'evidence');
  const cloud = kernel('6.1.0-37-cloud-amd64', '6.1.140-1');
  assert.equal(judgeKernel(planned, [cloud, planned], { kernel: '6.1.0-37-cloud-amd64' }), 'evidence');
});
