// Tests of the doctor: a fit host, each thing that may be wrong, and the commands for the day when Pratique is broken.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { systemClock } from '../src/base/clock.ts';
import { silentLog } from '../src/base/log.ts';
import { tapName } from '../src/hypervisor/network.ts';
import type { VmSpec } from '../src/hypervisor/vm-spec.ts';
import { SAMPLE_SCRUB, SAMPLE_SPEC, vmId } from '../test/fakes/service.ts';
import { breakGlassCommands, breakGlassPage } from './break-glass.ts';
import { type Config, loadConfig } from './config.ts';
import { hostPorts, runDoctor } from './doctor.ts';
import type { DoctorPorts } from './doctor-line.ts';
import type { ScrubView } from './scrubbing.ts';

const { config } = await loadConfig({ env: { HOME: '/nonexistent', PRATIQUE_DATA: '/d', PRATIQUE_RUN: '/r' }, uid: 1 });
const host = { config, clock: systemClock, log: silentLog };

const ANSWERS: Readonly<Record<string, string>> = {
  'qemu-system-x86_64': 'QEMU emulator version 7.2.17 (Debian)',
  timedatectl: 'yes',
  'apt-get': 'http://deb.example\nhttp://deb.example\nhttp://security.example',
};
const FIT: DoctorPorts = {
  probeKvm: async () => true,
  run: async ([program = '']) => ({ exitCode: 0, text: ANSWERS[program] ?? `${program} 1.0` }),
  mayUse: async () => true,
  readText: async () => null,
  folder: async () => ({ freeBytes: 100e9, mode: 0o711 }),
  nowMs: () => 1_800_000_000_000,
  uid: 0,
};

/** The lines that are not ok, as `check: state`. */
const findings = async (ports: Partial<DoctorPorts>, changed: Partial<Config> = {}): Promise<string[]> => {
  const lines = await runDoctor({ ...host, config: { ...config, ...changed } }, { ...FIT, ...ports });
  for (const { check, state, mend } of lines) assert.equal(mend === null, state === 'ok', check);
  return lines.filter(({ state }) => state !== 'ok').map(({ check, state }) => `${check}: ${state}`);
};
const without = (program: string): Partial<DoctorPorts> => ({
  run: async (argv) => (argv[0] === program ? null : await FIT.run(argv)),
});

test('what is missing to look into disks is a warning: all else works without', async () => {
  for (const program of ['qemu-storage-daemon', 'debugfs'])
    assert.deepEqual(await findings(without(program)), ['disk inspection: warning'], program);
  assert.deepEqual(await findings({ mayUse: async (path) => path !== '/dev/fuse' }), ['disk inspection: warning']);
});

test('a fit host has nothing to mend', async () => assert.deepEqual(await findings({}), []));

test('NICs that are not gated are shown, and a VM without any that is gated is a warning', async () => {
  const lineOf = async (...gated: readonly (boolean | undefined)[]) => {
    assert.ok(SAMPLE_SPEC.kind === 'managed');
    const [nic] = SAMPLE_SPEC.nics;
    assert.ok(nic !== undefined);
    const nics = gated.map((is, index) => ({ ...nic, id: `net${index}`, ...(is === undefined ? {} : { gated: is }) }));
    const lines = await runDoctor({ ...host, runs: new Map([['web', { spec: { ...SAMPLE_SPEC, nics } }]]) }, FIT);
    const line = lines.find(({ check }) => check === 'ungated NICs');
    return `${line?.state}: ${line?.detail}`;
  };
  assert.equal(await lineOf(undefined, true), 'ok: none');
  assert.equal(await lineOf(undefined, false), 'ok: web (net1)');
  assert.equal(await lineOf(false), 'warning: no NIC is gated of web (net0)');
});

test('a name in a group that no VM has is told: it may be a typo, and then a VM has another policy [A11]', async () => {
  const groups = { web: { vms: ['web*', 'wbe-2'], policy: {} } };
  const lineOf = async (runs?: ReadonlyMap<string, { readonly spec: VmSpec }>) => {
    const given = { ...host, config: { ...config, groups }, ...(runs === undefined ? {} : { runs }) };
    const line = (await runDoctor(given, FIT)).find(({ check }) => check === 'policy groups');
    return `${line?.state}: ${line?.detail}`;
  };
  assert.equal(await lineOf(new Map([['web', { spec: SAMPLE_SPEC }]])), 'warning: no VM is called wbe-2 (web)');
  assert.equal(await lineOf(), 'ok: 1 group', 'without a VM there is nothing to miss');
});

test('each missing tool is named with its package', async () => {
  for (const [program, check] of [
    ['ip', 'ip'],
    ['perl', 'perl'],
    ['setpriv', 'setpriv'],
    ['gpgv', 'gpgv'],
    ['xz', 'xz'],
    ['nft', 'nft'],
    ['qemu-system-x86_64', 'qemu'],
  ] as const) {
    assert.deepEqual(await findings(without(program)), [`${check}: unfit`]);
  }
});

test('a host without KVM, root, NTP or with bridge netfilter is warned', async () => {
  assert.deepEqual(await findings({ probeKvm: async () => false }), ['kvm: warning']);
  assert.deepEqual(await findings({ uid: 1000 }), ['rights: warning']);
  assert.deepEqual(await findings({ readText: async () => '1\n' }), ['bridge netfilter: warning']);
  const noNtp: Partial<DoctorPorts> = {
    run: async (argv) => (argv[0] === 'timedatectl' ? { exitCode: 0, text: 'no\n' } : await FIT.run(argv)),
  };
  assert.deepEqual(await findings(noNtp), ['clock: warning']);
});

test('an old QEMU, no tun device, folders open to others, no space and a wrong clock make a host unfit', async () => {
  const old: Partial<DoctorPorts> = {
    run: async (argv) =>
      argv[0] === 'qemu-system-x86_64' ? { exitCode: 0, text: 'QEMU emulator version 6.9.0' } : await FIT.run(argv),
  };
  assert.deepEqual(await findings(old), ['qemu: unfit']);
  assert.deepEqual(await findings({ mayUse: async (path) => path !== '/dev/net/tun' }), ['tun: unfit']);
  const open = async () => ({ freeBytes: 100e9, mode: 0o777 });
  assert.deepEqual(await findings({ folder: open }), ['data folder: unfit', 'run folder: unfit']);
  assert.deepEqual(await findings({ folder: async () => ({ freeBytes: 1e9, mode: null }) }), ['space: warning']);
  assert.deepEqual(await findings({ folder: async () => ({ freeBytes: 1e6, mode: null }) }), ['space: unfit']);
  assert.deepEqual(await findings({ nowMs: () => 0 }), ['clock: unfit']);
});

test('a kernel without nft for bridges is unfit, with what nft said stripped', async () => {
  const run: DoctorPorts['run'] = async (argv) =>
    argv[1] === 'list' ? { exitCode: 1, text: 'Error: \u001b[31mnot supported' } : await FIT.run(argv);
  const line = (await runDoctor(host, { ...FIT, run })).find(({ check }) => check === 'nft');
  assert.equal(line?.state, 'unfit');
  assert.match(line?.detail ?? '', /bridge family: Error: \[31mnot supported$/);
});

test('missing apt sources matter only to a Debian vendor without a url', async () => {
  assert.deepEqual(await findings(without('apt-get')), ['apt sources: warning']);
  const vendors = [{ kind: 'debian-apt', name: 'd', suites: ['bookworm'] }] as const;
  assert.deepEqual(await findings(without('apt-get'), { vendors }), ['apt sources: unfit']);
});

test('on the machine of the test every check answers', async () => {
  const lines = await runDoctor(host, { ...hostPorts(host), probeKvm: async () => false });
  assert.deepEqual(
    lines.map(({ check }) => check),
    [
      'rights',
      'kvm',
      'qemu',
      'nft',
      'ip',
      'perl',
      'setpriv',
      'gpgv',
      'xz',
      'disk inspection',
      'drive exports',
      'tun',
      'bridge netfilter',
      'data folder',
      'run folder',
      'space',
      'clock',
      'apt sources',
      'ungated NICs',
      'policy groups',
    ],
  );
});

test('the doctor gives for each VM the commands that plug it in by hand', async () => {
  const lines = await runDoctor({ ...host, runs: new Map([['web', { spec: SAMPLE_SPEC }]]) }, FIT);
  const line = lines.at(-1);
  assert.equal(line?.check, 'break-glass web');
  assert.equal(line?.detail, breakGlassCommands(SAMPLE_SPEC, '/r').join(' && '));
});

test('breaking the glass lifts the fence for the taps and raises the links through the monitor', () => {
  const [stop, fence, monitor, ...rest] = breakGlassCommands(SAMPLE_SPEC, '/r');
  assert.equal(stop, 'systemctl stop pratique || kill "$(cat /r/daemon.pid)"');
  assert.equal(fence, `nft add element bridge pratique admitted '{ "${tapName(vmId('web'), 'net0')}" }'`);
  assert.match(monitor ?? '', /^printf '.*"set_link".*"nic-net0","up":true.*' \| perl .* \/r\/vm\/web\/qmp\.sock$/);
  assert.deepEqual(rest, []);
});

const ATTACHED: VmSpec = {
  format: 'pratique.vm/1',
  kind: 'attached',
  vm: vmId('old'),
  qmpSocket: '/run/q.sock',
  channelSocket: '/run/c.sock',
  nics: [
    { id: 'net0', tap: 'tap7' },
    { id: 'net1', tap: 'tap8' },
  ],
  namespace: { kind: 'named', name: 'lab' },
};

test('the commands for an attached VM name its own taps, devices, socket and namespace, each a whole shell word', async () => {
  const commands = breakGlassCommands(ATTACHED, '/r');
  assert.match(commands[1] ?? '', /^nsenter --net=\/run\/netns\/lab nft add element .* '\{ "tap7" \}'$/);
  assert.match(commands[2] ?? '', /'\{ "tap8" \}'$/);
  const folder = await mkdtemp(join(tmpdir(), 'pratique-glass-'));
  const qmpSocket = join(folder, "it's here.sock");
  const heard: string[] = [];
  const monitor = createServer((client) => {
    client.write('{"QMP": {}}\n');
    client.on('data', (piece) => heard.push(String(piece)));
  }).listen(qmpSocket);
  await once(monitor, 'listening');
  const line = breakGlassCommands({ ...ATTACHED, qmpSocket }, '/r').at(-1) ?? '';
  const { stdout } = await promisify(execFile)('sh', ['-c', line]);
  monitor.close();
  await rm(folder, { recursive: true });
  assert.equal(stdout, '{"QMP": {}}\n');
  const requests = heard
    .join('')
    .trim()
    .split('\n')
    .map((text) => JSON.parse(text));
  assert.deepEqual(requests, [
    { execute: 'qmp_capabilities' },
    { execute: 'set_link', arguments: { name: 'net0', up: true } },
    { execute: 'set_link', arguments: { name: 'net1', up: true } },
    { execute: 'cont' },
  ]);
});

test('the page of all VMs is a shell script that does parse', async () => {
  const page = breakGlassPage([SAMPLE_SPEC, ATTACHED], '/r');
  assert.match(page, /\n# VM web\n[\s\S]*\n# VM old\n/);
  await promisify(execFile)('sh', ['-n', '-c', page]);
});

test('a clock behind the trust time is told with the way out, one that jumped ahead with what to do now; small steps are not', async () => {
  const lineOf = async (behindMs: number, unsettledMs = 0) => {
    const trustTime = { behindMs: () => behindMs, unsettledMs: () => unsettledMs, nowMs: () => 1_800_000_000_000 };
    const line = (await runDoctor({ ...host, trustTime }, FIT)).find(({ check }) => check === 'trust time');
    return `${line?.state}: ${line?.detail}; ${line?.mend}`;
  };
  assert.match(await lineOf(0), /^ok/);
  assert.match(await lineOf(2_000), /^ok/, 'a correction by NTP');
  assert.match(await lineOf(3 * 3_600_000), /^warning: the clock is 3 hours behind.*pratique clock accept --reason/);
  assert.match(await lineOf(3_650 * 86_400_000), /^unfit: the clock is 3650 days behind.*against 2027-01-15/);
  assert.match(await lineOf(0, 400 * 86_400_000), /^warning: the clock jumped ahead by 400 days.*set it now/);
  assert.ok(
    !(await runDoctor(host, FIT)).some(({ check }) => check === 'trust time'),
    'without a daemon it is not known',
  );
});

test('what the last reading of the store found is a line of its own', async () => {
  const lineOf = async (view: ScrubView) => {
    const line = (await runDoctor({ ...host, scrubbing: { view: () => view } }, FIT)).find(
      ({ check }) => check === 'stored packages',
    );
    return `${line?.state}: ${line?.detail}`;
  };
  assert.equal(await lineOf({ isRunning: true, last: null }), 'ok: not read again yet; being read again now');
  assert.match(await lineOf({ isRunning: false, last: SAMPLE_SCRUB }), /^warning: .*12 packages, 1 damaged .*web/);
  const sound = { ...SAMPLE_SCRUB, rottenBlobs: 0, rotten: [] };
  assert.match(await lineOf({ isRunning: false, last: sound }), /^ok: .*12 packages, all sound/);
});
