// The QMP client against a QEMU that answers well, badly, or not at all.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type FakeQemuOptions, startFakeQemu } from '../../../test/fakes/qemu.ts';
import { systemClock } from '../../base/clock.ts';
import { QMP_LINE_BYTES_MAX } from '../../base/limits.ts';
import { HypervisorError } from '../errors.ts';
import { connectQmp } from './qmp-client.ts';

async function connected(t: TestContext, options: Partial<FakeQemuOptions> = {}, timeoutMs = 2000) {
  const folder = await mkdtemp(join(tmpdir(), 'pq-qmp-'));
  const qmpSocket = join(folder, 'q');
  const qemu = await startFakeQemu({ qmpSocket, nics: [{ id: 'net0', tap: 'pq0' }], ...options });
  t.after(async () => {
    await qemu.close();
    await rm(folder, { recursive: true });
  });
  const qmp = await connectQmp({ path: qmpSocket, clock: systemClock, timeoutMs });
  t.after(qmp.close);
  return { qemu, qmp };
}

test('answers reach the command they belong to, events their listeners', async (t) => {
  const { qemu, qmp } = await connected(t);
  const events: string[] = [];
  qmp.onEvent(({ event }) => events.push(event));
  const [status, , blocks] = await Promise.all([
    qmp.execute('query-status'),
    qmp.execute('set_link', { name: 'net0', up: false }),
    qmp.execute('query-block'),
    qmp.execute('cont'),
  ]);
  assert.deepEqual(status, { status: 'prelaunch', singlestep: false, running: false });
  assert.deepEqual(blocks, []);
  assert.deepEqual(events, ['RESUME']);
  assert.equal(qemu.links.get('net0'), false);
});

test("a refusal carries QEMU's own class and leaves the connection usable", async (t) => {
  const { qmp } = await connected(t);
  await assert.rejects(qmp.execute('set_link', { name: 'nope', up: true }), (error) => {
    assert(error instanceof HypervisorError);
    assert.equal(error.code, 'host-fault/qmp-refused');
    assert.equal(error.qemuClass, 'DeviceNotFound');
    return true;
  });
  await qmp.execute('query-status');
});

const ILL: readonly { readonly name: string; readonly bytes: string }[] = [
  { name: 'not JSON', bytes: 'hello\r\n' },
  { name: 'a list', bytes: '[1,2]\r\n' },
  { name: 'null', bytes: 'null\r\n' },
  { name: 'an event without a name', bytes: '{"event":7}\r\n' },
  { name: 'an id that is no number', bytes: '{"return":{},"id":{"a":1}}\r\n' },
  { name: 'an error without a class', bytes: '{"error":"x","id":3}\r\n' },
];
for (const { name, bytes } of ILL) {
  test(`${name} from QEMU ends the connection with an error, not the program`, async (t) => {
    const { qmp } = await connected(t, { answer: ({ execute }) => (execute === 'query-status' ? [bytes] : null) });
    await assert.rejects(qmp.execute('query-status'), { code: 'host-fault/qmp-closed' });
    await assert.rejects(qmp.execute('cont'), { code: 'host-fault/qmp-closed' });
    await qmp.closed;
  });
}

test('a line without an end is cut off at its bound', async (t) => {
  const { qemu, qmp } = await connected(t, { answer: ({ execute }) => (execute === 'stop' ? [] : null) }, 20_000);
  const pending = assert.rejects(qmp.execute('stop'), { code: 'host-fault/qmp-closed' });
  qemu.writeRaw('x'.repeat(QMP_LINE_BYTES_MAX + 1));
  await pending;
  assert.match(await qmp.closed, /longer than/);
});

test('answers to nobody are passed over', async (t) => {
  const { qemu, qmp } = await connected(t);
  qemu.writeRaw('{"return":{},"id":99}\r\n{"return":{}}\r\n\r\n');
  await qmp.execute('query-status');
});

test('a silent QEMU is an error after the time limit; its late answer confuses nothing', async (t) => {
  const { qemu, qmp } = await connected(t, { answer: ({ execute }) => (execute === 'stop' ? [] : null) }, 100);
  await assert.rejects(qmp.execute('stop'), { code: 'timeout/qmp' });
  qemu.writeRaw('{"return":{"late":true},"id":2}\r\n');
  assert.deepEqual(await qmp.execute('query-block'), []);
});

test('a QEMU that dies ends every command under way', async (t) => {
  const { qemu, qmp } = await connected(t, { answer: ({ execute }) => (execute === 'stop' ? [] : null) }, 20_000);
  const pending = assert.rejects(qmp.execute('stop'), { code: 'host-fault/qmp-closed' });
  await qemu.close();
  await pending;
});

test('nobody behind the socket is an error that names it', async () => {
  await assert.rejects(connectQmp({ path: '/nonexistent/q', clock: systemClock }), { code: 'host-fault/qmp-connect' });
});
