// The fence against the kernel: real namespaces, real bridges, real frames.
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { type TestContext, test } from 'node:test';
import { makeNamespace, type TestNamespace } from '../../test/fakes/namespace.ts';
import { systemClock } from '../base/clock.ts';
import { silentLog } from '../base/log.ts';
import { type Fence, openFence } from './fence.ts';

const TABLE = ['bridge', 'pratique'] as const;

async function fenced(t: TestContext): Promise<{ net: TestNamespace; fence: Fence }> {
  const net = await makeNamespace();
  const fence = await openFence({ namespace: net.namespace, log: silentLog, clock: systemClock });
  t.after(async () => {
    fence.close();
    await net.close();
  });
  await fence.ensure();
  return { net, fence };
}

/** A bridge with an address, a port of the given name, and a neighbour behind that port in a namespace of its own. */
async function withNeighbour(t: TestContext, net: TestNamespace, port: string) {
  const peer = await makeNamespace({ neighbourOf: net });
  t.after(peer.close);
  assert(peer.namespace.kind === 'process');
  await net.ip(
    'link add br0 type bridge forward_delay 0',
    'addr add 10.9.0.1/24 dev br0',
    'link set br0 up',
    `link add ${port} type veth peer name eth0 netns ${peer.namespace.pid}`,
    `link set ${port} master br0`,
    `link set ${port} up`,
  );
  await peer.ip('addr add 10.9.0.2/24 dev eth0', 'link set eth0 up');
  const arping = async (from: TestNamespace, nic: string, to: string) => {
    const text = await from.run('sh', '-c', `busybox arping -f -c 2 -w 1 -I ${nic} ${to} || true`);
    return Number(/Received (\d+) /.exec(text)?.[1] ?? 0);
  };
  return { inward: () => arping(peer, 'eth0', '10.9.0.1'), outward: () => arping(net, 'br0', '10.9.0.2') };
}

test('a tap that is not admitted is heard by nobody and hears nobody; an admitted one does [A8] [X1]', async (t) => {
  const { net, fence } = await fenced(t);
  const ways = await withNeighbour(t, net, 'pqtest0');
  assert.equal(await ways.inward(), 0);
  assert.equal(await ways.outward(), 0);
  const dropped = await fence.counters(['pqtest0']);
  assert(dropped.fromGuest > 0 && dropped.toGuest > 0, JSON.stringify(dropped));
  await fence.admit(['pqtest0']);
  assert((await ways.inward()) > 0);
  assert((await ways.outward()) > 0);
  await fence.expel(['pqtest0']);
  assert.equal(await ways.inward(), 0);
});

test('a tap of any name is fenced once it is guarded, and others are left alone [X1]', async (t) => {
  const { net, fence } = await fenced(t);
  const ways = await withNeighbour(t, net, 'vnet7');
  assert((await ways.inward()) > 0, 'not ours before');
  await fence.guard(['vnet7']);
  assert.equal(await ways.inward(), 0);
  await fence.admit(['vnet7']);
  assert((await ways.inward()) > 0);
});

test('a tap that is deleted and made again is still fenced [X1]', async (t) => {
  const { net } = await fenced(t);
  const first = await withNeighbour(t, net, 'pqtest1');
  assert.equal(await first.inward(), 0);
  await net.ip('link delete pqtest1', 'link delete br0');
  const second = await withNeighbour(t, net, 'pqtest1');
  assert.equal(await second.inward(), 0);
});

test('the fence stands after the process that made it [X1] [A11]', async (t) => {
  const { net, fence } = await fenced(t);
  await fence.admit(['pqa']);
  fence.close();
  const again = await openFence({ namespace: net.namespace, log: silentLog, clock: systemClock });
  t.after(again.close);
  const state = await again.verify();
  assert.equal(state.fault, null);
  assert.deepEqual([...state.admitted], ['pqa']);
});

test('a rule that somebody put before ours, or took away, is seen and mended, and admitted taps stay admitted [X1]', async (t) => {
  const { net, fence } = await fenced(t);
  await fence.admit(['pqa']);
  const spoils = [
    ['nft', 'insert', 'rule', ...TABLE, 'prerouting', 'accept'],
    ['nft', 'flush', 'chain', ...TABLE, 'forward'],
    ['nft', 'flush', 'chain', ...TABLE, 'drop_to_guest'],
    [
      'nft',
      `delete table ${TABLE.join(' ')}; add table ${TABLE.join(' ')}; add set ${TABLE.join(' ')} admitted { type ifname; elements = { pqa } }; add chain ${TABLE.join(' ')} output { type filter hook output priority 0; }`,
    ],
  ];
  for (const spoil of spoils) {
    await net.run(...spoil);
    assert.notEqual((await fence.verify()).fault, null, spoil.join(' '));
    await fence.ensure();
    const state = await fence.verify();
    assert.equal(state.fault, null, spoil.join(' '));
    assert.deepEqual([...state.admitted], ['pqa']);
  }
});

test('without its table nothing counts as admitted or fenced, and admitting says so [X1]', async (t) => {
  const { net, fence } = await fenced(t);
  await net.run('nft', 'delete', 'table', ...TABLE);
  assert.equal((await fence.verify()).fault, 'set admitted is missing');
  await assert.rejects(fence.admit(['pqa']), /did not take pqa/);
  await assert.rejects(fence.guard(['tap1']), /did not take tap1/);
});

test('expelling what is not there is fine, of two changes in one go the last holds, and a name that is none is refused', async (t) => {
  const { fence } = await fenced(t);
  await fence.expel(['pqnever']);
  const both = await Promise.allSettled([fence.admit(['pqa']), fence.expel(['pqa'])]);
  assert.deepEqual(
    both.map((one) => one.status),
    ['rejected', 'fulfilled'],
  );
  assert.equal(await fence.isAdmitted('pqa'), false);
  await assert.rejects(fence.admit(['x" }; flush ruleset']), { code: 'usage/tap-name' });
});

test('when nft dies it is started again and the change is made [X1]', async (t) => {
  const { net, fence } = await fenced(t);
  await fence.admit(['pqa']);
  const ours = await childrenOf(process.pid, 'nft');
  assert(ours.length > 0);
  for (const pid of ours) process.kill(pid, 'SIGKILL');
  await fence.admit(['pqb']);
  assert.match(await net.run('nft', 'list', 'set', ...TABLE, 'admitted'), /"pqa".*"pqb"|"pqb".*"pqa"/s);
});

test('a hundred admissions at once are one transaction and take milliseconds', async (t) => {
  const { fence } = await fenced(t);
  const start = performance.now();
  await Promise.all(Array.from({ length: 100 }, (_, index) => fence.admit([`pq${index}`])));
  const tookMs = performance.now() - start;
  assert.equal((await fence.verify()).admitted.size, 100);
  assert(tookMs < 2000, `${tookMs} ms; 99 parallel nft processes took 35,000`);
});

async function childrenOf(parent: number, name: string): Promise<readonly number[]> {
  const found: number[] = [];
  for (const pid of (await readdir('/proc')).filter((entry) => /^\d+$/.test(entry))) {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
    const [, comm, ppid] = /^\d+ \((.*)\) \S (\d+) /.exec(stat) ?? [];
    if (comm === name && Number(ppid) === parent) found.push(Number(pid));
  }
  return found;
}
