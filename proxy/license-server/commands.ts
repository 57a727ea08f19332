// pratique license-server …: the reference license server for labs, and its administration over the same database.
import { readFile } from 'node:fs/promises';
import { type Command, InvalidArgumentError } from 'commander';
import { isoTime } from '../../src/base/clock.ts';
import { describeError } from '../../src/base/errors.ts';
import { type Build, type Context, completeCommand } from '../cli/context.ts';
import type { Output } from '../cli/output.ts';
import { renderTable } from '../cli/table.ts';
import { durationMs } from '../duration.ts';
import { LicenseServerError } from './error.ts';
import type { LicenseRow, LicenseStore, LicenseTerms } from './license-store.ts';

type Place = { readonly data: string };
type Terms = {
  readonly seats?: number;
  readonly product?: string;
  readonly tenant?: string;
  readonly expires?: string;
  readonly leaseMax?: number;
  readonly checkoutMax?: number;
};
type ServeOptions = Place & {
  readonly listen: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly rate?: number;
};

const DAY_MS = 86_400_000;
const SEATS_MAX = 1_000_000;
const RATE_MAX = 100_000;
const LOG_SHOWN = 100;

/** Adds `pratique license-server` and its verbs. */
export function addLicenseServerCommands(program: Command, build: Build): void {
  const server = program
    .command('license-server')
    .description('a license server of your own, for labs; hosts speak to it as docs/license-api.md says');
  addServe(server, build);
  addCreate(server, build);
  addChange(server, build);
  addToken(server, build);
  addStanding(server, build);
  addReading(server, build);
  addKey(server, build);
}

function verb(server: Command, name: string, description: string): Command {
  return server
    .command(name)
    .description(description)
    .requiredOption('--data <file>', "the server's database; made if it is missing");
}

function addServe(server: Command, build: Build): void {
  const command = verb(server, 'serve', 'answers hosts, in the foreground; ends on SIGTERM or Ctrl-C')
    .option('--listen <address:port>', 'where; port 0 takes a free one', '127.0.0.1:8475')
    .option('--tls-cert <file>', 'certificate chain, PEM; needed to listen anywhere but on this machine')
    .option('--tls-key <file>', "the certificate's key, PEM")
    .option('--rate <number>', 'requests a second of one token', wholeUpTo(RATE_MAX));
  const example = 'pratique license-server serve --data /var/lib/pratique/licenses.db';
  completeCommand<ServeOptions>(command, build, example, async (context, _args, options) => {
    const { output, clock, interrupted } = context;
    const [{ listen, makeLicenseApi, parseListen }, { makeLog }] = await Promise.all([
      import('./http.ts'),
      import('../../src/base/log.ts'),
    ]);
    const address = parseListen(options.listen);
    const tls = await readTls(options);
    const signal = interrupted();
    await withStore(context, options, async (store) => {
      const rate = options.rate === undefined ? {} : { ratePerSecond: options.rate };
      const app = makeLicenseApi({ store, clock, log: makeLog('warn'), ...(tls === null ? {} : { tls }), ...rate });
      const url = await listen(app, address, tls !== null);
      output.show({ url, keyid: store.signingKeys()[0]?.keyid }, () => `Answering on ${url}`);
      if (!signal.aborted) {
        await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
      }
      await app.close();
    });
    return undefined;
  });
}

async function readTls({
  tlsCert,
  tlsKey,
}: ServeOptions): Promise<{ readonly cert: string; readonly key: string } | null> {
  if (tlsCert === undefined && tlsKey === undefined) return null;
  if (tlsCert === undefined || tlsKey === undefined) {
    throw new LicenseServerError('usage/command-line', 'TLS needs both --tls-cert and --tls-key');
  }
  const [cert, key] = await Promise.all([readPem(tlsCert), readPem(tlsKey)]);
  return { cert, key };
}

async function readPem(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw new LicenseServerError('usage/file', `reading ${path}`, {
      cause,
      next: 'give a PEM file that this user can read',
    });
  }
}

function withTerms(command: Command): Command {
  return command
    .option('--product <name>', 'what it is for')
    .option('--tenant <name>', 'whose it is')
    .option('--expires <when>', 'a date (2027-01-31), a time from now (90d), or never')
    .option('--lease-max <duration>', 'longest lease, for example 10m; 24h on creation', duration)
    .option('--checkout-max <duration>', 'longest use without the server; 0s: none, as on creation', duration);
}

function termsOf(terms: Terms, nowMs: number): Partial<LicenseTerms> {
  const { seats, product, tenant, expires, leaseMax, checkoutMax } = terms;
  return {
    ...(seats === undefined ? {} : { seats }),
    ...(product === undefined ? {} : { product }),
    ...(tenant === undefined ? {} : { tenant }),
    ...(expires === undefined ? {} : { expiresAtMs: readExpiry(expires, nowMs) }),
    ...(leaseMax === undefined ? {} : { leaseMaxMs: leaseMax }),
    ...(checkoutMax === undefined ? {} : { checkoutMaxMs: checkoutMax }),
  };
}

function readExpiry(text: string, nowMs: number): number | null {
  if (text === 'never') return null;
  const fromNowMs = durationMs(text);
  const atMs =
    fromNowMs === null && /^\d{4}-\d{2}-\d{2}/.test(text) ? Date.parse(text) : nowMs + (fromNowMs ?? Number.NaN);
  if (Number.isSafeInteger(atMs) && atMs >= 0) return atMs;
  throw new LicenseServerError('usage/expires', '--expires is no date and no time from now', {
    next: 'write it like 2027-01-31, 90d or never',
  });
}

function addCreate(server: Command, build: Build): void {
  const command = withTerms(
    verb(server, 'create', 'makes a license and prints its token, this once')
      .requiredOption('--license <id>', 'its id: lower case, digits, dots, dashes')
      .requiredOption('--seats <number>', 'VMs that may hold it at the same time', wholeUpTo(SEATS_MAX)),
  );
  const example = 'pratique license-server create --data licenses.db --license acme-2026 --seats 20 --expires 365d';
  type Create = Place & Terms & { readonly license: string; readonly seats: number };
  completeCommand<Create>(command, build, example, async (context, _args, options) => {
    await withStore(context, options, async (store) => {
      const unset = { product: null, tenant: null, expiresAtMs: null, leaseMaxMs: DAY_MS, checkoutMaxMs: 0 };
      const given = termsOf(options, context.clock.nowMs());
      const { license, token } = store.create(options.license, { ...unset, ...given, seats: options.seats });
      tellToken(context.output, license, token);
    });
    return undefined;
  });
}

/** The token goes to stdout alone, so that it can be piped into whatever keeps it. */
function tellToken(output: Output, license: LicenseRow, token: string): void {
  output.show({ license, token }, () => token);
  output.note(`This is the token of ${license.id}; it is not kept here and never shown again.`);
}

function addChange(server: Command, build: Build): void {
  const command = withTerms(
    verb(server, 'change', 'changes the terms of a license; leases that are held stay as they are')
      .argument('<license>')
      .option('--seats <number>', 'VMs that may hold it at the same time', wholeUpTo(SEATS_MAX)),
  );
  const example = 'pratique license-server change acme-2026 --data licenses.db --seats 30';
  completeCommand<Place & Terms>(command, build, example, async (context, [id = ''], options) => {
    await withStore(context, options, async (store) => {
      const license = store.change(id, termsOf(options, context.clock.nowMs()));
      context.output.done(license, `${id} is changed`);
    });
    return undefined;
  });
}

function addToken(server: Command, build: Build): void {
  const command = verb(server, 'token', 'makes a further token of a license and prints it, this once')
    .argument('<license>')
    .option('--only', 'the earlier tokens of the license end');
  const example = 'pratique license-server token acme-2026 --data licenses.db --only';
  completeCommand<Place & { readonly only?: boolean }>(command, build, example, async (context, [id = ''], options) => {
    await withStore(context, options, async (store) => {
      const token = store.addToken(id, { isOnly: options.only === true });
      tellToken(context.output, store.show(id), token);
    });
    return undefined;
  });
}

function addStanding(server: Command, build: Build): void {
  const act = (
    name: string,
    description: string,
    done: string,
    work: (store: LicenseStore, id: string) => LicenseRow,
    workOnLease: ((store: LicenseStore, id: string, lease: string) => void) | null = null,
  ): void => {
    const command = verb(server, name, description).argument('<license>');
    if (workOnLease !== null) command.option('--lease <id>', 'one lease only, and its machine');
    const example = `pratique license-server ${name} acme-2026 --data licenses.db`;
    type Act = Place & { readonly lease?: string };
    completeCommand<Act>(command, build, example, async (context, [id = ''], options) => {
      await withStore(context, options, async (store) => {
        if (options.lease !== undefined && workOnLease !== null) workOnLease(store, id, options.lease);
        else work(store, id);
        context.output.done(store.show(id), `${options.lease ?? id} is ${done}`);
      });
      return undefined;
    });
  };
  act('suspend', 'ends a license until it is reinstated', 'suspended', (store, id) => store.suspend(id));
  act(
    'reinstate',
    'makes a suspended or revoked license, or the machine of a revoked lease, valid again',
    'reinstated',
    (store, id) => store.reinstate(id),
    (store, id, lease) => store.reinstateLease(id, lease),
  );
  act(
    'revoke',
    'ends a license, or one lease of it',
    'revoked',
    (store, id) => store.revoke(id),
    (store, id, lease) => store.revokeLease(id, lease),
  );
  act('expire', 'lets a license end now', 'expired', (store, id) => store.expire(id));
}

function addReading(server: Command, build: Build): void {
  const list = verb(server, 'list', 'licenses, their seats and their end');
  completeCommand<Place>(
    list,
    build,
    'pratique license-server list --data licenses.db',
    async (context, _args, options) => {
      await withStore(context, options, async (store) => {
        const licenses = store.list();
        context.output.show({ licenses }, () => licensesText(licenses, context.output));
      });
      return undefined;
    },
  );
  const leases = verb(server, 'leases', 'the seats of a license that are held now').argument('<license>');
  const example = 'pratique license-server leases acme-2026 --data licenses.db';
  completeCommand<Place>(leases, build, example, async (context, [id = ''], options) => {
    await withStore(context, options, async (store) => {
      const seats = store.seats(id);
      const head = ['LEASE', 'FINGERPRINT', 'UNTIL', 'KIND'].map((title) => ({ title }));
      context.output.show({ leases: seats }, () =>
        renderTable(
          head,
          seats.map((seat) => [
            seat.id,
            seat.fingerprint,
            isoTime(seat.expiresAtMs),
            seat.offline ? 'offline' : 'online',
          ]),
          { columns: context.output.columns, ifEmpty: 'No seat is held.' },
        ),
      );
    });
    return undefined;
  });
  addLog(server, build);
}

function addLog(server: Command, build: Build): void {
  const command = verb(server, 'log', 'what the server and its administrator decided, newest last').option(
    '--limit <number>',
    'how many',
    wholeUpTo(100_000),
    LOG_SHOWN,
  );
  const example = 'pratique license-server log --data licenses.db';
  completeCommand<Place & { readonly limit: number }>(command, build, example, async (context, _args, options) => {
    await withStore(context, options, async (store) => {
      const log = store.log(options.limit);
      const head = ['AT', 'WHO', 'DID', 'LICENSE', 'LEASE', 'DETAIL'].map((title) => ({ title }));
      context.output.show({ log }, () =>
        renderTable(
          head,
          log.map((row) => [isoTime(row.atMs), row.actor, row.action, row.license ?? '', row.lease ?? '', row.detail]),
          { columns: context.output.columns, ifEmpty: 'Nothing was decided yet.' },
        ),
      );
    });
    return undefined;
  });
}

function addKey(server: Command, build: Build): void {
  const command = verb(server, 'key', 'prints the public keys that hosts check answers with').option(
    '--rotate',
    'a new key signs from now on, beside the one before it; hosts that know either go on',
  );
  const example = 'pratique license-server key --data licenses.db >license-server.pub';
  completeCommand<Place & { readonly rotate?: boolean }>(command, build, example, async (context, _args, options) => {
    await withStore(context, options, async (store) => {
      if (options.rotate === true) store.rotateKey();
      const keys = store.signingKeys().map(({ keyid, publicPem }) => ({ keyid, publicKey: publicPem }));
      context.output.show({ keys }, () => keys.map(({ publicKey }) => publicKey.trimEnd()).join('\n'));
    });
    return undefined;
  });
}

function licensesText(licenses: readonly LicenseRow[], output: Output): string {
  const head = [
    { title: 'LICENSE' },
    { title: 'STATUS' },
    { title: 'USED', alignRight: true },
    { title: 'SEATS', alignRight: true },
    { title: 'EXPIRES' },
    { title: 'PRODUCT' },
    { title: 'TENANT' },
  ];
  const rows = licenses.map((row) => [
    row.id,
    row.status,
    String(row.used),
    String(row.seats),
    row.expiresAtMs === null ? 'never' : isoTime(row.expiresAtMs),
    row.product ?? '',
    row.tenant ?? '',
  ]);
  return renderTable(head, rows, { columns: output.columns, ifEmpty: 'There are no licenses yet.' });
}

async function withStore(
  { clock, output }: Context,
  { data }: Place,
  work: (store: LicenseStore) => Promise<void>,
): Promise<void> {
  const { LicenseStore: Store } = await import('./license-store.ts');
  const store = new Store(data, clock);
  try {
    await work(store);
  } finally {
    try {
      store.close();
    } catch (error) {
      output.warn(`closing ${data}: ${describeError(error)}`);
    }
  }
}

function duration(text: string): number {
  const ms = durationMs(text);
  if (ms === null) throw new InvalidArgumentError('must be like 10m, 24h or 30d');
  return ms;
}

function wholeUpTo(largest: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= 1 && value <= largest) return value;
    throw new InvalidArgumentError(`must be a whole number from 1 to ${largest}`);
  };
}
