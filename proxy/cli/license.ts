// pratique license …: tokens on this host, which VM holds which seat, and what that is to be billed.
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { Writable } from 'node:stream';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { isoTime } from '../../src/base/clock.ts';
import { ERROR_FAMILIES, PratiqueError } from '../../src/base/errors.ts';
import { LICENSE_TOKEN_BYTES_MAX } from '../../src/base/limits.ts';
import { durationMs } from '../duration.ts';
import type { LeaseView, LicenseDefinition, LicenseUse, LicenseView } from '../licenses-service.ts';
import { actorOf } from './actor.ts';
import { type Build, completeCommand } from './context.ts';
import { csvText } from './csv.ts';
import type { Output } from './output.ts';
import { renderTable } from './table.ts';
import { durationText, sizeText } from './text.ts';

type TokenOptions = { readonly tokenFile?: string };
type AddOptions = TokenOptions & {
  readonly server: string;
  readonly kind: LicenseDefinition['kind'];
  readonly publicKey: string;
  readonly serverName?: string;
  readonly ca?: string;
  readonly origin?: readonly string[];
  readonly header?: string;
  readonly tenant?: readonly string[];
  readonly lab?: boolean;
  readonly unchecked?: boolean;
};

/** Adds `pratique license` and its verbs. */
export function addLicenseCommands(program: Command, build: Build): void {
  const license = program.command('license').description('tokens of licenses, and the seats that VMs hold');
  addAdd(license, build);
  addShowing(license, build);
  addChecking(license, build);
  addLeases(license, build);
  addEnding(license, build);
  addUsage(license, build);
}

const tokenFile = () =>
  new Option('--token-file <file>', 'where the token is; else it is read from stdin, and not shown where it is typed');

function addAdd(license: Command, build: Build): void {
  const command = license
    .command('add')
    .description('add a license; its server is asked before anything is kept. The token is never shown again')
    .argument('<id>', 'as releases name it')
    .requiredOption('--server <url>', 'its license server')
    .addOption(
      new Option('--kind <kind>', 'what the server speaks').choices(['pratique', 'keygen']).default('pratique'),
    )
    .requiredOption('--public-key <file>', "what signs the server's answers: PEM, for Keygen its hex")
    .option(
      '--server-name <name>',
      'what the server calls the license, where that is another name; for Keygen: the account',
    )
    .option('--ca <file>', 'the only authorities that are believed for the server (PEM)')
    .option('--origin <url...>', 'where downloads carry the token to: https://updates.example.com')
    .option('--header <name>', 'header of downloads that holds the token, instead of Authorization: Bearer')
    .option('--tenant <name...>', 'only for VMs of these tenants')
    .option('--lab', 'also over plain http on this machine (http://127.0.0.1:8080)')
    .option('--unchecked', 'do not ask the server first')
    .addOption(tokenFile());
  const example = 'pratique license add acme-2026 --server URL --public-key acme.pem --origin URL --token-file token';
  completeCommand<AddOptions>(command, build, example, async ({ output, connect, env }, [id = ''], options) => {
    const definition = await definitionOf(id, options);
    const token = await readToken(options);
    const given = { token, isUnchecked: options.unchecked === true, actor: actorOf(env) };
    const added = await (await connect()).addLicense(definition, given);
    if (added.token?.warning !== null && added.token !== null) output.warn(`the token is ${added.token.warning}`);
    output.done(added, `license ${id} is added (token ending in ${added.token?.lastFour ?? ''})`);
    return undefined;
  });
}

async function definitionOf(license: string, options: AddOptions): Promise<LicenseDefinition> {
  const { server, kind, serverName, ca, origin = [], header, tenant = [], lab } = options;
  return {
    ...{ license, kind, serverUrl: server, origins: origin, tenants: tenant },
    publicKey: await readGiven(options.publicKey, '--public-key'),
    ...(serverName === undefined ? {} : { serverName }),
    ...(ca === undefined ? {} : { ca: await readGiven(ca, '--ca') }),
    ...(header === undefined ? {} : { header }),
    ...(lab === true ? { isLab: true } : {}),
  };
}

async function readGiven(path: string, option: string): Promise<string> {
  return await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new PratiqueError('usage/file', `${option} ${path}: cannot be read`, { cause, next: 'check the path' });
  });
}

/** From a file or from stdin; a command line is seen by everybody on the machine. */
async function readToken({ tokenFile: path }: TokenOptions): Promise<string> {
  const { isTTY } = process.stdin;
  const text =
    path !== undefined ? await readGiven(path, '--token-file') : isTTY ? await readHidden() : await readStdin();
  const token = text.trim();
  if (token !== '') return token;
  throw new PratiqueError('usage/license-token', 'no token was given', {
    next: 'write it to stdin, or name a file with --token-file',
  });
}

/** One line typed at a terminal, which does not show it; empty when it is broken off. */
async function readHidden(): Promise<string> {
  const nowhere = new Writable({ write: (_piece, _encoding, done) => done() });
  // It takes the echo away from the terminal and gives it back when it is closed.
  const lines = createInterface({ input: process.stdin, output: nowhere, terminal: true, historySize: 0 });
  process.stderr.write('token (not shown): ');
  try {
    return await new Promise<string>((resolve) => {
      lines.once('line', resolve);
      lines.once('close', () => resolve(''));
    });
  } finally {
    lines.close();
    process.stderr.write('\n');
  }
}

async function readStdin(): Promise<string> {
  const pieces: Buffer[] = [];
  let sizeBytes = 0;
  for await (const piece of process.stdin) {
    const bytes = Buffer.from(piece);
    sizeBytes += bytes.length;
    if (sizeBytes > LICENSE_TOKEN_BYTES_MAX)
      throw new PratiqueError('usage/license-token', `the token is longer than ${LICENSE_TOKEN_BYTES_MAX} bytes`);
    pieces.push(bytes);
  }
  return Buffer.concat(pieces).toString('utf8');
}

function addShowing(license: Command, build: Build): void {
  const list = license.command('list').description('the licenses: seats, use, expiry, and how their tokens are sealed');
  completeCommand(list, build, 'pratique license list', async ({ output, connect }) => {
    const licenses = await (await connect()).listLicenses();
    output.show({ licenses }, () => licensesText(licenses, output));
    return undefined;
  });
  const show = license.command('show').description('one license').argument('<id>');
  completeCommand(show, build, 'pratique license show acme-2026', async ({ output, connect }, [id = '']) => {
    const found = await (await connect()).showLicense(id);
    output.show(found, () => licenseText(found));
    return undefined;
  });
}

function licensesText(licenses: readonly LicenseView[], output: Output): string {
  const head = ['LICENSE', 'STATE', 'SEATS', 'HERE', 'WAITING', 'EXPIRES', 'TOKEN', 'SEALED'].map((title) => ({
    title,
  }));
  const rows = licenses.map((each) => {
    const { license, said, held, waiting, token } = each;
    const state = stateOf(each);
    return [
      license,
      { text: state, paint: (text: string) => output.paint(isWell(each) ? 'green' : 'yellow', text) },
      said?.seats === null || said === null ? '' : `${said.seats.used}/${said.seats.total}`,
      String(held),
      String(waiting),
      said?.expiresAtMs === null || said === null ? '' : isoTime(said.expiresAtMs),
      token === null ? 'unreadable' : `…${token.lastFour}`,
      token?.sealedBy ?? '',
    ];
  });
  return renderTable(head, rows, {
    columns: output.columns,
    ifEmpty: 'No licenses. Add one with: pratique license add',
  });
}

function licenseText(license: LicenseView): string {
  const { said, token, origins, tenants } = license;
  const lines = [
    ['license', license.license],
    ['state', stateOf(license)],
    ['server', `${license.serverUrl} (${license.kind})`],
    ['seats', said?.seats === null || said === null ? 'not known' : `${said.seats.used} of ${said.seats.total} taken`],
    ['on this host', `${license.held} held, ${license.waiting} waiting`],
    ['expires', said?.expiresAtMs === null || said === null ? 'not known' : isoTime(said.expiresAtMs)],
    ['token', token === null ? 'cannot be read' : `ends in ${token.lastFour}, sealed by ${token.sealedBy}`],
    ['goes to', origins.join(' ') || 'its server only'],
    ['tenants', tenants.join(' ') || 'all'],
  ];
  const notes = [license.trouble, token?.warning ?? null].flatMap((each) => (each === null ? [] : [`  ${each}`]));
  return [...lines.map(([name = '', value = '']) => `${name.padEnd(14)}${value}`), ...notes].join('\n');
}

const isWell = ({ said, trouble, ended, token }: LicenseView): boolean =>
  ended === null && trouble === null && token !== null && (said === null || said.isValid);

function stateOf({ said, trouble, ended }: LicenseView): string {
  if (ended !== null) return ended;
  if (trouble !== null) return said === null ? 'server away' : `${said.code}, server away`;
  return said?.code ?? 'not asked yet';
}

function addChecking(license: Command, build: Build): void {
  const check = license
    .command('check')
    .description('ask the server of one license, or of all, now; exit code 5 where one says no, 6 where one is ill')
    .argument('[id]');
  completeCommand(check, build, 'pratique license check acme-2026', async ({ output, connect }, [id]) => {
    const licenses = await (await connect()).checkLicenses(id ?? null);
    output.show({ licenses }, () => licenses.map(checkText).join('\n') || 'No licenses.');
    if (licenses.some(({ said, ended, trouble }) => ended !== null || (trouble === null && said?.isValid === false)))
      return ERROR_FAMILIES.refused.exitCode;
    return licenses.some(({ trouble }) => trouble !== null) ? ERROR_FAMILIES['vendor-ill'].exitCode : undefined;
  });
  const rotate = license
    .command('rotate')
    .description('give a new token; it is tried at the server before the old one is gone')
    .argument('<id>')
    .addOption(tokenFile());
  const example = 'pratique license rotate acme-2026 --token-file new-token';
  completeCommand<TokenOptions>(rotate, build, example, async ({ output, connect, env }, [id = ''], options) => {
    const token = await readToken(options);
    const rotated = await (await connect()).rotateLicense(id, { token, actor: actorOf(env) });
    output.done(rotated, `license ${id} has its new token (ending in ${rotated.token?.lastFour ?? ''})`);
    return undefined;
  });
}

function checkText(license: LicenseView): string {
  const { said, trouble, ended } = license;
  const id = license.license;
  if (ended === 'REVOKED_HERE') return `${id}: revoked on this host\n  next: pratique license rotate ${id}`;
  if (trouble !== null)
    return `${id}: its server was not reached: ${trouble}\n  next: leases that hold go on; check the network`;
  if (said === null) return `${id}: not asked yet`;
  const seats = said.seats === null ? '' : `, ${said.seats.used} of ${said.seats.total} seats taken`;
  if (said.isValid) return `${id}: ${said.code}${seats}`;
  return `${id}: ${said.code}${seats}${said.detail === '' ? '' : `: ${said.detail}`}\n  next: ask its vendor`;
}

function addLeases(license: Command, build: Build): void {
  const leases = license
    .command('leases')
    .description('which VM holds which seat')
    .option('--vm <vm>', 'of one VM')
    .option('--license <id>', 'of one license')
    .option('--csv', 'as comma-separated values (RFC 4180)');
  type Options = { readonly vm?: string; readonly license?: string; readonly csv?: boolean };
  const example = 'pratique license leases --vm web';
  completeCommand<Options>(
    leases,
    build,
    example,
    async ({ output, connect, clock }, _args, { csv, vm, license: id }) => {
      const filter = { ...(vm === undefined ? {} : { vm }), ...(id === undefined ? {} : { license: id }) };
      const found = await (await connect()).leases(filter);
      output.show({ leases: found }, () =>
        csv === true ? leasesCsv(found) : leasesText(found, output, clock.nowMs()),
      );
      return undefined;
    },
  );
  const release = license
    .command('release')
    .description('give back what a VM holds; it takes seats again when it needs them')
    .requiredOption('--vm <vm>', 'whose seats');
  type Release = { readonly vm: string };
  completeCommand<Release>(release, build, 'pratique license release --vm web', async (context, _args, { vm }) => {
    const left = await (await context.connect()).releaseSeats(vm, { actor: actorOf(context.env) });
    const sentence =
      left.length === 0 ? `the seats of ${vm} are given back` : `${vm}: noted; its servers did not answer yet`;
    context.output.done({ leases: left }, sentence);
    return undefined;
  });
}

function leasesText(leases: readonly LeaseView[], output: Output, nowMs: number): string {
  const head = ['LICENSE', 'VM', 'TENANT', 'STATE', 'CODE', 'SEAT', 'EXPIRES', 'USED'].map((title) => ({ title }));
  const rows = leases.map((lease) => [
    lease.license,
    lease.vm,
    lease.tenant,
    lease.standing === 'grace' || lease.standing === 'over' ? `${lease.state} (${lease.standing})` : lease.state,
    lease.code,
    lease.seat ?? '',
    lease.expiresAtMs === null ? '' : isoTime(lease.expiresAtMs),
    `${durationText(nowMs - lease.usedAtMs)} ago`,
  ]);
  return renderTable(head, rows, { columns: output.columns, ifEmpty: 'No VM holds a seat.' });
}

function leasesCsv(leases: readonly LeaseView[]): string {
  const head = ['license', 'vm', 'tenant', 'state', 'standing', 'code', 'seat', 'granted', 'expires', 'used'];
  const time = (ms: number | null) => (ms === null ? '' : isoTime(ms));
  const rows = leases.map((each) => [
    ...[each.license, each.vm, each.tenant, each.state, each.standing ?? '', each.code, each.seat ?? ''],
    ...[time(each.grantedAtMs), time(each.expiresAtMs), time(each.usedAtMs)],
  ]);
  return csvText(head, rows);
}

function addEnding(license: Command, build: Build): void {
  const revoke = license
    .command('revoke')
    .description('use a license no more on this host, from now on: what it guards is taken off drives (audited)')
    .argument('<id>')
    .requiredOption('--reason <text>', 'why; goes into the audit record');
  type Revoke = { readonly reason: string };
  const example = 'pratique license revoke acme-2026 --reason "the token leaked"';
  completeCommand<Revoke>(revoke, build, example, async ({ output, connect, env }, [id = ''], { reason }) => {
    const revoked = await (await connect()).revokeLicense(id, { reason, actor: actorOf(env) });
    output.done(
      revoked,
      `license ${id} is revoked on this host; a new token lifts that: pratique license rotate ${id}`,
    );
    return undefined;
  });
  const remove = license
    .command('remove')
    .description('give the seats of a license back, then forget it and its token')
    .argument('<id>')
    .option('--force', 'also where its server does not take the seats back now');
  type Remove = { readonly force?: boolean };
  const removed = 'pratique license remove acme-2026';
  completeCommand<Remove>(remove, build, removed, async ({ output, connect, env }, [id = ''], { force }) => {
    await (await connect()).removeLicense(id, { isForced: force === true, actor: actorOf(env) });
    output.done({ license: id, isRemoved: true }, `license ${id} is forgotten`);
    return undefined;
  });
}

function addUsage(license: Command, build: Build): void {
  const usage = license
    .command('usage')
    .description('what licenses were used for, by tenant: hours of seats, fetches, bytes')
    .option('--tenant <name>', 'of one tenant')
    .addOption(
      new Option('--since <when>', 'a date (2026-01-31) or a duration (30d)').default('30d').argParser((text) => {
        if (durationMs(text) !== null || !Number.isNaN(Date.parse(text))) return text;
        throw new InvalidArgumentError('give a date like 2026-01-31, or a duration like 30d');
      }),
    )
    .option('--csv', 'as comma-separated values (RFC 4180)');
  type Usage = { readonly tenant?: string; readonly since: string; readonly csv?: boolean };
  const example = 'pratique license usage --tenant retail --since 2026-01-01 --csv';
  completeCommand<Usage>(usage, build, example, async ({ output, connect, clock }, _args, { tenant, since, csv }) => {
    const backMs = durationMs(since);
    const sinceMs = Math.max(0, backMs === null ? Date.parse(since) : Math.trunc(clock.nowMs()) - backMs);
    const use = await (await connect()).licenseUse({ sinceMs, ...(tenant === undefined ? {} : { tenant }) });
    output.show({ sinceMs, use }, () => (csv === true ? useCsv(use) : useText(use, output)));
    return undefined;
  });
}

function useText(use: readonly LicenseUse[], output: Output): string {
  const head = [
    ...['TENANT', 'LICENSE', 'VM'].map((title) => ({ title })),
    ...['SEAT-HOURS', 'FETCHES', 'BYTES'].map((title) => ({ title, alignRight: true })),
  ];
  const rows = use.map((row) => [
    ...[row.tenant, row.license, row.vm, row.seatHours.toFixed(1)],
    ...[String(row.fetches), sizeText(row.bytes)],
  ]);
  return renderTable(head, rows, { columns: output.columns, ifEmpty: 'Nothing was used.' });
}

function useCsv(use: readonly LicenseUse[]): string {
  const head = ['tenant', 'license', 'vm', 'seat_hours', 'fetches', 'bytes'];
  const rows = use.map((row) => [
    ...[row.tenant, row.license, row.vm, String(row.seatHours)],
    ...[String(row.fetches), String(row.bytes)],
  ]);
  return csvText(head, rows);
}
