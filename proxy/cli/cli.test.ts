// Tests of the command line: what it prints, what it asks the daemon, and its exit codes.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, beforeEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { systemClock } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { type FakeDaemon, startFakeDaemon } from '../../test/fakes/daemon.ts';
import { SAMPLE_USE } from '../../test/fakes/license-service.ts';
import { makeFakeService, SAMPLE_DRIFT, SAMPLE_INSPECTION, SAMPLE_SPEC, vmId } from '../../test/fakes/service.ts';
import { buildProgram, runCommandLine } from './program.ts';

let daemon: FakeDaemon;
before(async () => {
  daemon = await startFakeDaemon();
});
beforeEach(() => {
  daemon.reset();
});
after(async () => await daemon.close());

type Run = { readonly code: number; readonly stdout: string; readonly stderr: string };
type Where = {
  readonly isTty?: boolean;
  readonly columns?: number;
  readonly env?: NodeJS.ProcessEnv;
  readonly signal?: AbortSignal;
};

/** Runs a command line in this process with captured streams. */
async function run(argv: readonly string[], where: Where = {}): Promise<Run> {
  const said = { stdout: '', stderr: '' };
  const stream = (name: keyof typeof said) => ({
    write: (text: string) => {
      said[name] += text;
    },
    isTTY: where.isTty === true,
    columns: where.columns ?? 80,
    rows: 24,
  });
  const code = await runCommandLine(argv, {
    stdout: stream('stdout'),
    stderr: stream('stderr'),
    env: { ...daemon.env, ...where.env },
    uid: 1000,
    interrupted: () => where.signal ?? new AbortController().signal,
  });
  return { code, ...said };
}

/** Runs the real program in a process of its own. */
async function runProgram(argv: readonly string[], env: NodeJS.ProcessEnv = daemon.env): Promise<Run> {
  const main = fileURLToPath(new URL('../main.ts', import.meta.url));
  const child = spawn(process.execPath, [main, ...argv], { env, stdio: ['ignore', 'pipe', 'pipe'] });
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (piece) => (stdout += piece));
  child.stderr.on('data', (piece) => (stderr += piece));
  const code = await new Promise<number>((resolve) => child.on('close', (ended) => resolve(ended ?? -1)));
  return { code, stdout, stderr };
}

const json = (result: Run): unknown => {
  assert.equal(result.stdout.trim().split('\n').length, 1, result.stdout);
  return JSON.parse(result.stdout);
};

test('the program ends with the exit codes of the contract', async () => {
  const service = daemon.reset(makeFakeService('quarantined'));
  service.failWith('startVm', new PratiqueError('refused/policy', 'not now'));
  service.failWith('updateVm', new PratiqueError('vendor-ill/http', 'the mirror answered 503'));
  service.failWith('retryVm', new PratiqueError('host-unfit/nft', 'no nft'));
  service.failWith('stopVm', new Error('a bug'));
  const nobody = { ...daemon.env, PRATIQUE_RUN: join(daemon.folder, 'nobody') };
  const cases: readonly (readonly [readonly string[], number, NodeJS.ProcessEnv?])[] = [
    [['vm', 'list'], 0],
    [['--help'], 0],
    [['vm', 'wait', '--help'], 0],
    [['vm', 'stop', 'web'], 1],
    [['vm', 'strat', 'web'], 2],
    [['vm', 'list', '--colour'], 2],
    [['vm'], 2],
    [['vm', 'show', 'nobody'], 2],
    [['vm', 'retry', 'web'], 3],
    [['vm', 'wait', 'web'], 4],
    [['vm', 'start', 'web'], 5],
    [['vm', 'update', 'web'], 6],
    [['vm', 'list'], 7, nobody],
    [['drift', '--fail-on', 'security'], 8],
  ];
  const ended = await Promise.all(cases.map(async ([argv, , env]) => await runProgram(argv, env)));
  const codes = ended.map(({ code }, index) => [cases[index]?.[0].join(' '), code]);
  assert.deepEqual(
    codes,
    cases.map(([argv, code]) => [argv.join(' '), code]),
  );
});

test('an error goes to stderr with its next step, and with --json also as one document to stdout', async () => {
  const plain = await run(['vm', 'show', 'nobody']);
  assert.equal(plain.stdout, '');
  assert.equal(plain.stderr, 'pratique: there is no VM nobody\n  next: see `pratique vm list`\n');
  const asJson = await run(['vm', 'show', 'nobody', '--json']);
  assert.deepEqual(json(asJson), {
    error: { code: 'not-found/vm', message: 'there is no VM nobody', next: 'see `pratique vm list`' },
  });
  assert.equal(
    (json(await run(['vm', 'strat', '--json'])) as { error: { code: string } }).error.code,
    'usage/command-line',
  );
});

test('a command without a daemon says how to start it', async () => {
  const { code, stderr } = await run(['vm', 'list'], { env: { PRATIQUE_RUN: '/nonexistent' } });
  assert.equal(code, 7);
  assert.match(stderr, /the daemon is not running.*\n {2}next: start it with `pratique serve`/);
});

const COMMANDS =
  'audit checkpoint, audit export, audit rotate-key, audit show, audit verify, backup, clock accept, config check, config show, config sign, demo, doctor, drift, ' +
  'license add, license check, license leases, license list, license release, license remove, license revoke, ' +
  'license rotate, license show, license usage, ' +
  'license-server change, license-server create, license-server expire, license-server key, ' +
  'license-server leases, license-server list, license-server log, license-server reinstate, license-server revoke, ' +
  'license-server serve, license-server suspend, license-server token, publish delegate, ' +
  'publish init, publish refresh, publish request, publish revoke, publish rotate-key, publish show, restore, serve, store scrub, store show, ' +
  'vendor add, vendor check, vendor list, vendor publish, vm add, vm admit, vm events, vm inspect, vm list, ' +
  'vm plan, vm policy, vm remove, vm retry, vm set, vm show, vm start, vm stop, vm update, vm wait, vm why';

test('every command has an example, --json and a description', () => {
  const leaves: Command[] = [];
  const walk = (command: Command): void => {
    // One that takes an argument does something itself, also if it has verbs below it.
    if (command.commands.length === 0 || command.registeredArguments.length > 0) leaves.push(command);
    command.commands.forEach(walk);
  };
  const nowhere = { write: () => {} };
  const surroundings = {
    stdout: nowhere,
    stderr: nowhere,
    env: {},
    uid: 0,
    interrupted: () => new AbortController().signal,
  };
  walk(buildProgram({ surroundings, finish: () => {} }));
  const names = leaves.map(
    (leaf) => `${leaf.parent?.name() === 'pratique' ? '' : `${leaf.parent?.name()} `}${leaf.name()}`,
  );
  assert.deepEqual(names.sort().join(', '), COMMANDS);
  for (const leaf of leaves) {
    let help = '';
    leaf.configureOutput({ writeOut: (text) => (help += text) }).outputHelp();
    assert.match(help, /\nExample:\n {2}\$ pratique /, leaf.name());
    assert.ok(
      leaf.options.some(({ long }) => long === '--json'),
      leaf.name(),
    );
    assert.notEqual(leaf.description(), '', leaf.name());
  }
});

test('with --json every reading command prints one document with what the service said', async () => {
  const service = daemon.service();
  service.setState('web', 'quarantined');
  const cases: readonly (readonly [readonly string[], unknown])[] = [
    [['vm', 'list'], { vms: await service.listVms() }],
    [['vm', 'show', 'web'], await service.showVm('web')],
    [['vm', 'why', 'web'], await service.whyVm('web')],
    [['vm', 'why'], { vms: [await service.whyVm('web')] }],
    [['vm', 'plan', 'web'], await service.planVm('web')],
    [['vm', 'inspect', 'web'], await service.inspectVm('web')],
    [['vendor', 'list'], { vendors: await service.listVendors() }],
    [['vendor', 'list', 'acme'], { releases: await service.vendorOffers('acme') }],
    [['vendor', 'check'], { vendors: await service.checkVendor(null) }],
    [['license', 'list'], { licenses: await service.listLicenses() }],
    [['license', 'show', 'acme'], await service.showLicense('acme')],
    [['license', 'check'], { licenses: await service.checkLicenses(null) }],
    [['license', 'leases', '--vm', 'web'], { leases: await service.leases({ vm: 'web' }) }],
    [['license', 'usage', '--since', '1970-01-02'], { sinceMs: 86_400_000, use: [SAMPLE_USE] }],
    [['drift'], { drift: await service.drift() }],
    [['doctor'], { isFit: true, lines: await service.doctor() }],
    [['audit', 'checkpoint'], await service.auditCheckpoint()],
    [['audit', 'verify'], await service.auditVerify()],
    [['audit', 'show'], (await service.auditEntries({ afterSeq: 0, limit: 9 }))[0]],
  ];
  for (const [argv, expected] of cases) {
    const limit = argv[1] === 'show' && argv[0] === 'audit' ? ['--limit', '1'] : [];
    const { code, ...result } = await run([...argv, ...limit, '--json']);
    assert.deepEqual(json({ code, ...result }), expected, argv.join(' '));
    assert.equal(code, 0);
    assert.equal(result.stderr, '');
  }
});

test('acting commands ask the service for exactly what was said, and are quiet when piped', async () => {
  const service = daemon.service();
  const argvs = [
    ['vm', 'start', 'web'],
    ['vm', 'stop', 'web', '--force'],
    ['vm', 'retry', 'web'],
    ['vm', 'update', 'web'],
    ['vm', 'admit', 'web', '--reason', 'it routes'],
    ['vendor', 'add', 'deb', '--kind', 'debian-apt', '--suite', 'bookworm', 'bookworm-security'],
    [
      'vendor',
      'add',
      'shop',
      '--kind',
      'tuf',
      '--metadata-url',
      'https://s/m',
      '--targets-url',
      'https://s/t',
      '--root',
      '/r.json',
    ],
    ['vm', 'remove', 'web'],
  ];
  for (const argv of argvs) assert.deepEqual(await run(argv), { code: 0, stdout: '', stderr: '' }, argv.join(' '));
  const [start, stop, , , admit, deb, shop, remove] = service.calls;
  assert.deepEqual(start?.args, ['web']);
  assert.deepEqual(stop?.args, ['web', { force: true }]);
  assert.match(JSON.stringify(admit?.args), /"reason":"it routes","actor":"\w+/);
  assert.deepEqual(deb?.args, [{ kind: 'debian-apt', name: 'deb', suites: ['bookworm', 'bookworm-security'] }]);
  assert.deepEqual(shop?.args, [
    { kind: 'tuf', name: 'shop', metadataUrl: 'https://s/m', targetsUrl: 'https://s/t', rootPath: '/r.json' },
  ]);
  assert.deepEqual(remove?.args, ['web']);
});

test('an override without a reason is a usage error and changes nothing', async () => {
  const { code, stderr } = await run(['vm', 'admit', 'web']);
  assert.equal(code, 2);
  assert.match(stderr, /--reason/);
  assert.deepEqual(daemon.service().calls, []);
});

const SPEC_TOML = `format = "pratique.vm/1"
kind = "managed"
vm = "db"
machine = "q35"
memoryMiB = 256
cpus = 1
disks = [{ id = "root", path = "/srv/disks/db.raw", format = "raw" }]

[[nics]]
id = "net0"
model = "virtio-net-pci"
mac = "52:54:00:00:00:02"
`;

test('vm add reads a TOML or JSON spec, fills in the default bridge and hands on the policy', async () => {
  const toml = join(daemon.folder, 'db.toml');
  const file = join(daemon.folder, 'x.json');
  await writeFile(toml, SPEC_TOML);
  await writeFile(file, JSON.stringify({ ...SAMPLE_SPEC, vm: 'x' }));
  const flags = [
    '--install',
    'listed',
    '--package',
    'nginx',
    'linux-image-*',
    '--hold',
    'jq',
    '--no-reboot',
    '--overlay',
  ];
  const more = ['--infrastructure', '--vendor', 'deb', 'acme', '--vendor-away', 'admit', '--left-out', 'admit'];
  const last = ['--metadata-age', '36h', '--run-deadline', '90m', '--apt', 'vendor-verified', '--no-inspect-disk'];
  assert.equal((await run(['vm', 'add', toml, ...flags, ...more, ...last, '--group', 'web'])).code, 0);
  assert.equal((await run(['vm', 'add', file])).code, 0);
  const [first, second] = daemon.service().calls;
  const spec = first?.args[0] as typeof SAMPLE_SPEC & { kind: 'managed' };
  assert.deepEqual(
    spec.nics.map((nic) => ('bridge' in nic ? nic.bridge : null)),
    ['pratique0'],
  );
  assert.deepEqual(first?.args[1], {
    install: 'listed',
    packages: ['nginx', 'linux-image-*'],
    holds: ['jq'],
    allowReboot: false,
    infrastructure: true,
    vendors: ['deb', 'acme'],
    metadataAgeMaxMs: 36 * 3_600_000,
    vendorAway: 'admit',
    leftOut: 'admit',
    apt: 'vendor-verified',
    overlay: true,
    inspectDisk: false,
    runDeadlineMs: 90 * 60_000,
  });
  assert.deepEqual(first?.args[2], { group: 'web' });
  assert.deepEqual(second?.args, [{ ...SAMPLE_SPEC, vm: 'x' }, {}, {}]);
});

test('an error in a spec names file, line, field and the nearest one, and the service is not asked', async () => {
  const path = join(daemon.folder, 'bad.toml');
  await writeFile(path, SPEC_TOML.replace('model =', 'modle ='));
  const unknown = await run(['vm', 'add', path]);
  assert.equal(unknown.code, 2);
  assert.match(unknown.stderr, /bad\.toml:11: `nics\[0\]\.modle` is not a known key; the nearest known key is `model`/);
  await writeFile(path, SPEC_TOML.replace('cpus = 1', 'cpus = 0'));
  assert.match((await run(['vm', 'add', path])).stderr, /bad\.toml:6: `cpus` must be at least 1/);
  assert.match(
    (await run(['vm', 'add', join(daemon.folder, 'none.toml')])).stderr,
    /none\.toml: there is no such file/,
  );
  assert.deepEqual(daemon.service().calls, []);
});

test('vm add attaches a VM that runs already', async () => {
  const options = ['--qmp', '/run/q.sock', '--channel', '/run/c.sock', '--tap', 'net0=tap7', 'net1=tap8'];
  assert.equal((await run(['vm', 'add', 'old', ...options])).code, 0);
  assert.deepEqual(daemon.service().calls[0]?.args[0], {
    format: 'pratique.vm/1',
    kind: 'attached',
    vm: 'old',
    qmpSocket: '/run/q.sock',
    channelSocket: '/run/c.sock',
    nics: [
      { id: 'net0', tap: 'tap7' },
      { id: 'net1', tap: 'tap8' },
    ],
  });
  assert.equal((await run(['vm', 'add', 'older', ...options, '--drive-port', 'rp1', '--netns', 'lab'])).code, 0);
  assert.match(
    JSON.stringify(daemon.service().calls[1]?.args[0]),
    /"drivePort":"rp1","namespace":{"kind":"named","name":"lab"}/,
  );
  const missing = await run(['vm', 'add', 'old', '--qmp', '/run/q.sock']);
  assert.equal(missing.code, 2);
  assert.match(missing.stderr, /needs --qmp, --channel and --tap/);
  assert.match(
    (await run(['vm', 'add', 'old', ...options.slice(0, 4), '--tap', 'tap7'])).stderr,
    /write it as NIC=TAP/,
  );
});

test('text of guests and vendors cannot act on the terminal, in tables, sentences or JSON', async () => {
  const evil = '\u001b[2J\u009b1m\u202eevil\u0007';
  daemon.service().setDrift([{ ...SAMPLE_DRIFT, product: evil, latest: `1\n2${evil}` }]);
  const { inventory } = SAMPLE_INSPECTION;
  const os = { ...inventory.os, versionId: evil };
  daemon.service().setInspection({ ...SAMPLE_INSPECTION, notes: [evil], inventory: { ...inventory, os } });
  daemon.service().failWith('startVm', new PratiqueError('guest-fault/agent', `it said ${evil}`));
  daemon.service().emit({ vm: vmId('web'), kind: 'guest', state: 'installing', text: evil });
  const hostile = /(?!\n)[\p{Cc}\p{Cf}]/u;
  for (const argv of [
    ['drift'],
    ['drift', '--csv'],
    ['drift', '--json'],
    ['vm', 'start', 'web', '--json'],
    ['vm', 'inspect', 'web'],
    ['vm', 'events'],
    ['vm', 'events', '--json'],
  ]) {
    const { stdout, stderr } = await run(argv);
    assert.doesNotMatch(stdout.replaceAll('\r\n', '\n') + stderr, hostile, argv.join(' '));
    assert.match(stdout + stderr, /evil/);
  }
  const [row] = (json(await run(['drift', '--json'])) as { drift: readonly { product: string }[] }).drift;
  assert.equal(row?.product, evil, 'JSON keeps the data as it is');
});

const ESCAPE = '\u001b';

test('tables fit the terminal, and are whole and without colours when piped', async () => {
  const onTerminal = await run(['vm', 'list'], { isTty: true, columns: 60 });
  const bare = onTerminal.stdout.replaceAll(ESCAPE, '').replace(/\[\d+m/g, '');
  for (const line of bare.trimEnd().split('\n')) assert.ok(line.length <= 60, line);
  assert.notEqual(bare, onTerminal.stdout);
  const piped = await run(['vm', 'list'], { columns: 60 });
  assert.match(piped.stdout, /the check of shop failed/);
  assert.ok(!piped.stdout.includes(ESCAPE));
  assert.ok(!(await run(['vm', 'list'], { isTty: true, env: { NO_COLOR: '1' } })).stdout.includes(ESCAPE));
});

test('drift as CSV quotes, and a cell that a spreadsheet would run is disarmed', async () => {
  daemon.service().setDrift([{ ...SAMPLE_DRIFT, product: '=cmd("x"),y', installed: null }]);
  const { stdout } = await run(['drift', '--csv']);
  assert.equal(
    stdout.split('\r\n')[1]?.trim(),
    `web,bundle,"'=cmd(""x""),y",,2.0.0,security,1700000000000,ACME-2026-1,confirm,`,
  );
});

test('drift --fail-on tells security drift from any drift', async () => {
  daemon.service().setDrift([{ ...SAMPLE_DRIFT, kind: 'fix' }]);
  assert.equal((await run(['drift', '--fail-on', 'security'])).code, 0);
  assert.equal((await run(['drift', '--fail-on', 'any'])).code, 8);
  daemon.service().setDrift([]);
  assert.equal((await run(['drift', '--fail-on', 'any'])).code, 0);
});

const whenFollowed = async (): Promise<void> => {
  while (daemon.service().followers() === 0) await new Promise((resolve) => setTimeout(resolve, 5));
};

test('vm wait ends when the VM is connected, whatever it was before', async () => {
  const service = daemon.service();
  service.setState('web', 'connected');
  service.setState('web', 'booting');
  const waiting = run(['vm', 'wait', 'web', '--timeout', '20s', '--json']);
  await whenFollowed();
  // The old `connected` has been seen, and the present state was asked for because of it.
  while (service.calls.filter(({ method }) => method === 'whyVm').length < 2) await systemClock.sleep(5);
  service.setState('web', 'installing');
  service.setState('web', 'connected');
  const { code, stdout, stderr } = await waiting;
  assert.equal(code, 0);
  assert.equal(JSON.parse(stdout).state, 'connected');
  assert.match(stderr, /web: booting:/);
});

test('vm wait ends with 4 when the VM is quarantined, and says why', async () => {
  daemon.service().setState('web', 'judging');
  const waiting = run(['vm', 'wait', 'web', '--timeout', '20s', '--quiet']);
  await whenFollowed();
  daemon.service().setState('web', 'quarantined');
  const { code, stdout, stderr } = await waiting;
  assert.equal(code, 4);
  assert.match(
    stdout,
    /web is quarantined, not plugged in: the check of shop failed\n {2}next: run pratique vm retry web/,
  );
  assert.equal(stderr, '');
});

test('vm wait --for off takes a VM that was staged the moment it was off', async () => {
  const service = daemon.service();
  service.setState('web', 'connected');
  const waiting = run(['vm', 'wait', 'web', '--for', 'off', '--timeout', '20s', '--quiet']);
  await whenFollowed();
  service.setState('web', 'off');
  service.setState('web', 'staged');
  assert.equal((await waiting).code, 0);
});

test('vm wait ends with 1 after its timeout', async () => {
  const { code, stderr } = await run(['vm', 'wait', 'web', '--timeout', '100ms', '--quiet']);
  assert.equal(code, 1);
  assert.match(stderr, /still off after 100 ms; see: pratique vm why web/);
  assert.equal((await run(['vm', 'wait', 'web', '--timeout', 'soon'])).code, 2);
});

test('vm events --follow --json prints one event a line until it is interrupted', async () => {
  const stop = new AbortController();
  daemon.service().setState('web', 'booting');
  const following = run(['vm', 'events', 'web', '--follow', '--json'], { signal: stop.signal });
  await whenFollowed();
  daemon.service().setState('web', 'reporting');
  await new Promise((resolve) => setTimeout(resolve, 100));
  stop.abort();
  const { code, stdout } = await following;
  assert.equal(code, 0);
  assert.deepEqual(
    stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line).seq),
    [1, 2],
  );
});

test('a program that follows ends with 0 on SIGTERM, one that waits for an answer ends at once', async () => {
  const main = fileURLToPath(new URL('../main.ts', import.meta.url));
  const options = { env: daemon.env, stdio: 'ignore' } as const;
  const follower = spawn(process.execPath, [main, 'vm', 'events', '--follow'], options);
  await whenFollowed();
  follower.kill('SIGTERM');
  assert.deepEqual(await once(follower, 'close'), [0, null]);
  let isAsked = (): void => {};
  const asked = new Promise<void>((resolve) => {
    isAsked = resolve;
  });
  const drift = async () => {
    isAsked();
    return await new Promise<never>(() => {});
  };
  daemon.reset({ ...makeFakeService(), drift });
  const waiter = spawn(process.execPath, [main, 'drift'], options);
  await asked;
  waiter.kill('SIGINT');
  assert.deepEqual(await once(waiter, 'close'), [null, 'SIGINT']);
});

test('vendor check ends with 6 when a vendor is ill', async () => {
  const trouble = { code: 'vendor-ill/http', message: 'answered 503' };
  const status = { vendor: 'acme', checkedAtMs: null, isFresh: false, trouble };
  daemon.reset({ ...makeFakeService(), checkVendor: async () => [status] });
  assert.equal((await run(['vendor', 'check'])).code, 6);
});

test('config check and show work without a daemon; a mistake is exit code 2 with file and line', async () => {
  const path = join(daemon.folder, 'p.toml');
  await writeFile(path, 'logLevel = "debug"\n');
  const shown = json(await run(['config', 'show', '--json', '--config', path])) as {
    files: string[];
    config: { logLevel: string };
  };
  assert.deepEqual([shown.files, shown.config.logLevel], [[path], 'debug']);
  assert.match((await run(['config', 'show', '--config', path])).stdout, /logLevel = "debug"/);
  await writeFile(path, '\nlogLevl = "debug"\n');
  const bad = await run(['config', 'check', '--config', path]);
  assert.equal(bad.code, 2);
  assert.match(bad.stderr, /p\.toml:2: `logLevl` is not a known key; the nearest known key is `logLevel`/);
});

test('vendor publish makes a signed repository from a release folder, without a daemon', async () => {
  const source = join(daemon.folder, 'hello-1.2.0');
  await mkdir(join(source, 'files'), { recursive: true });
  await writeFile(join(source, 'files/hello'), 'hello');
  const install = { action: 'bundle', prefix: '/opt/hello' };
  await writeFile(
    join(source, 'release.json'),
    JSON.stringify({ product: 'hello', version: '1.2.0', kind: 'fix', install }),
  );
  const folders = ['--repository', join(daemon.folder, 'repo'), '--keys', join(daemon.folder, 'keys')];
  const published = json(await run(['vendor', 'publish', source, ...folders, '--json'])) as {
    targets: { product: string }[];
  };
  assert.deepEqual(
    published.targets.map(({ product }) => product),
    ['hello'],
  );
  assert.ok((await readdir(join(daemon.folder, 'repo/metadata'))).includes('timestamp.json'));
  const bad = await run(['vendor', 'publish', join(daemon.folder, 'nothing'), ...folders]);
  assert.equal(bad.code, 2);
  assert.deepEqual(daemon.service().calls, []);
});

test('a clock is accepted with a reason and who said so; without a reason nothing is asked of the daemon', async () => {
  assert.equal((await run(['clock', 'accept'])).code, 2);
  assert.equal((await run(['clock', 'accept', '--reason', 'the RTC was wrong'])).code, 0);
  const [call] = daemon.service().calls;
  assert.equal(call?.method, 'acceptClock');
  assert.match(JSON.stringify(call?.args), /"reason":"the RTC was wrong","actor":"\w+"/);
});

test('a reading of the store is begun and waited for; damage is told with exit code 1', async () => {
  const waited = await run(['store', 'scrub']);
  assert.equal(waited.code, 1);
  assert.match(waited.stdout, /12 packages, 4096 bytes: 1 damaged.*\n {2}[0-9a-f]{64} altered, needed by web/);
  assert.deepEqual(
    daemon.service().calls.map(({ method }) => method),
    ['startScrub', 'scrubView'],
  );
  const begun = await run(['store', 'scrub', '--no-wait', '--json']);
  assert.equal(begun.code, 0);
  assert.deepEqual(json(begun), { isRunning: true, last: null });
  assert.equal((await run(['store', 'show'])).code, 1);
});

test('a backup and its restore end with the exit codes of what happened, and answer in JSON', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-cli-'));
  try {
    const data = join(folder, 'data');
    await mkdir(data);
    new DatabaseSync(join(data, 'pratique.db')).exec('CREATE TABLE vendor (name TEXT, config TEXT)');
    const env = { ...daemon.env, PRATIQUE_DATA: data };
    const file = join(folder, 'b.tar.zst');
    const made = await run(['backup', '--to', file, '--json'], { env });
    assert.equal(made.code, 0, made.stderr);
    assert.match(made.stderr, /keep it as safe as the host/);
    const { digest } = json(made) as { readonly digest: string }; // The cast holds: a report has a digest.
    assert.equal((await run(['backup', '--to', file], { env })).code, 1, 'never over another file');
    const to = join(folder, 'restored');
    assert.equal((await run(['restore', '--from', file, '--data', to, '--digest', 'x'])).code, 2);
    assert.equal((await run(['restore', '--from', file, '--data', to, '--digest', '0'.repeat(64)])).code, 2);
    const restored = await run(['restore', '--from', file, '--data', to, '--digest', digest, '--json']);
    assert.equal(restored.code, 0, restored.stderr);
    assert.match(restored.stdout, /every gate is closed first/);
    assert.equal((await run(['restore', '--from', file, '--data', to])).code, 1, 'never over another host');
    assert.equal((await run(['backup', '--to', '-'], { env, isTty: true })).code, 2, 'not to a terminal');
    const piped = await runProgram(['backup', '--to', '-'], env);
    assert.equal(piped.code, 0, piped.stderr);
    assert.match(piped.stdout, /^manifest\.json/);
  } finally {
    await rm(folder, { recursive: true });
  }
});
