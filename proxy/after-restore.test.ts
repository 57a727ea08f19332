// The first start over a restored backup closes every gate, once, and says so in the chain.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { silentLog } from '../src/base/log.ts';
import type { Namespace } from '../src/hypervisor/vm-spec.ts';
import { SAMPLE_SPEC } from '../test/fakes/service.ts';
import { beginAfterRestore } from './after-restore.ts';
import { loadConfig } from './config.ts';

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pratique-restored-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

type Given = Parameters<typeof beginAfterRestore>[0];

const BOTH = [SAMPLE_SPEC, { ...SAMPLE_SPEC, namespace: { kind: 'named', name: 'n' } }];

/** Rooms of a host with VMs in two namespaces, and what was done in them. */
async function rooms(fault: Error | null = null, known: readonly unknown[] = BOTH) {
  const { config } = await loadConfig({ env: { PRATIQUE_DATA: folder, PRATIQUE_RUN: folder, HOME: folder }, uid: 1 });
  const admitted = new Map([
    ['host', new Set(['pqweb0', 'pqunknown0'])],
    ['named', new Set(['pqdb0'])],
  ]);
  const records: unknown[] = [];
  const fenceFor = async (namespace: Namespace) => {
    if (fault !== null) throw fault;
    const taps = admitted.get(namespace.kind) ?? assert.fail(namespace.kind);
    return {
      verify: async () => ({ fault: null, admitted: new Set(taps), gated: new Set<string>() }),
      expel: async (gone: readonly string[]) => {
        for (const tap of gone) taps.delete(tap);
      },
    };
  };
  let doubts = 0;
  const given = {
    config,
    licenses: { book: { doubt: () => (doubts += 1) } },
    log: silentLog,
    fenceFor,
    journal: { load: () => known.map((spec) => ({ spec })) },
    audit: {
      append: async (record: unknown) => {
        records.push(record);
        return { seq: 1, hash: '' };
      },
    },
  };
  // The cast holds for what is used here: verify, expel, load, append, doubt.
  return { given: given as unknown as Given, admitted, records, doubts: () => doubts };
}

const restored = () => join(folder, 'restored.json');
const mark = () =>
  writeFileSync(restored(), '{"format":"pratique.restored/1","madeAtMs":1790000000000,"restoredAtMs":1790000001000}');

test('without a restore no tap is touched', async () => {
  const { given, admitted, doubts } = await rooms();
  assert.equal(await beginAfterRestore(given), null);
  assert.equal(admitted.get('host')?.size, 2);
  assert.equal(doubts(), 0);
});

test('after a restore no seat counts by what an old database says [A15]', async () => {
  mark();
  const { given, doubts } = await rooms();
  await beginAfterRestore(given);
  assert.equal(doubts(), 1);
});

test('after a restore no tap is admitted in any namespace, whoever it belonged to, before VMs are taken over [A11]', async () => {
  mark();
  const { given, admitted, records } = await rooms();
  const end = await beginAfterRestore(given);
  assert.deepEqual(
    [...admitted.values()].map(({ size }) => size),
    [0, 0],
  );
  assert.ok(existsSync(restored()), 'a crash before the end closes them again');
  assert.deepEqual(records, []);
  await end?.();
  assert.match(JSON.stringify(records), /restored.*backup of 2026-09-21T14:13:20/);
  assert.ok(!existsSync(restored()));
  assert.equal(await beginAfterRestore(given), null);
});

test('a fence that cannot be read does not keep the host from starting: nobody is admitted by it either', async () => {
  mark();
  const { given } = await rooms(new Error('no nft'));
  const end = await beginAfterRestore(given);
  await end?.();
  assert.ok(!existsSync(restored()));
});

test('a marker that is damaged is told, not passed over', async () => {
  writeFileSync(restored(), '{');
  const { given } = await rooms();
  await assert.rejects(beginAfterRestore(given), { code: 'host-fault/restored' });
});

test('a backup from before the first VM closes the taps of those that were added since, too [A11]', async () => {
  mark();
  const { given, admitted } = await rooms(null, []);
  await beginAfterRestore(given);
  assert.equal(admitted.get('host')?.size, 0);
});
