// A host's own use of its tokens in a process of its own, told what to do on stdin: with the name table, proxies and trust it was given.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { get } from 'node:https';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { systemClock } from '../../src/base/clock.ts';
import { digestOf } from '../../src/base/digest.ts';
import { describeError, PratiqueError } from '../../src/base/errors.ts';
import { makeHttpFetch } from '../../src/base/http-fetch.ts';
import { makeLog } from '../../src/base/log.ts';
import { licenseInterceptor } from '../../src/license/download-token.ts';
import { makeLicenseTransport } from '../../src/license/http-transport.ts';
import type { TokenPlace } from '../../src/license/token-place.ts';
import { openVault, type Vault } from '../../src/license/vault.ts';
import { openBlobStore } from '../../src/store/blob-store.ts';

export type TokenOrder = {
  /** `download`: a licensed artifact into the store; `plain`: the same without a license; `ask`: the license server; `careless`: a GET that verifies nothing unless the environment says so. */
  readonly do: 'download' | 'plain' | 'ask' | 'careless';
  readonly url: string;
  readonly token: string;
  readonly origins: readonly string[];
  readonly place?: TokenPlace;
  readonly isLoopbackHttpAllowed?: boolean;
  readonly ca?: string;
  /** What the artifact is by its signed metadata. */
  readonly content?: string;
};

export type TokenOutcome = { readonly said: string; readonly code: string | null; readonly status?: number };

const log = makeLog('trace');

async function carryOut(order: TokenOrder, vault: Vault, folder: string): Promise<TokenOutcome> {
  switch (order.do) {
    case 'careless':
      return await careless(order.url);
    case 'ask':
      return await ask(order, vault);
    default:
      return await download(order, vault, folder);
  }
}

async function ask(order: TokenOrder, vault: Vault): Promise<TokenOutcome> {
  const { origin, pathname } = new URL(order.url);
  const transport = makeLicenseTransport({
    vault,
    license: 'acme',
    serverUrl: origin,
    clock: systemClock,
    isLoopbackHttpAllowed: order.isLoopbackHttpAllowed ?? false,
    ...(order.ca === undefined ? {} : { ca: order.ca }),
  });
  try {
    const answer = await transport({ method: 'POST', path: pathname, body: { nonce: 'n' } });
    return { said: Buffer.from(answer.body).toString('utf8'), code: null, status: answer.status };
  } finally {
    await transport.close();
  }
}

async function download(order: TokenOrder, vault: Vault, folder: string): Promise<TokenOutcome> {
  const { origins, place = { kind: 'header', scheme: 'Bearer' }, isLoopbackHttpAllowed = false } = order;
  const intercept = licenseInterceptor(vault, () => ({ origins, place, isLoopbackHttpAllowed }));
  const http = makeHttpFetch({ clock: systemClock, log, intercept });
  const store = await openBlobStore({ folder, clock: systemClock, log, budgetBytes: 1024 * 1024 });
  const content = Buffer.from(order.content ?? '');
  const under = order.do === 'download' ? { license: 'acme' } : {};
  try {
    await store.ensure({
      digest: digestOf(content),
      sizeBytes: content.length,
      open: async (_offset, signal) => {
        const opened = await http.open(order.url, { sizeBytesMax: content.length, signal, ...under });
        return opened.bytes;
      },
      signal: new AbortController().signal,
      onProgress: () => {},
    });
    return { said: 'stored', code: null };
  } finally {
    await store.close();
    await http.close();
  }
}

async function careless(url: string): Promise<TokenOutcome> {
  return await new Promise((resolve, reject) => {
    get(url, (answer) => {
      answer.resume();
      answer.on('end', () => resolve({ said: 'reached', code: null, status: answer.statusCode ?? 0 }));
    }).on('error', reject);
  });
}

const [, , folder = ''] = process.argv;
const vault = await openVault({ folder: join(folder, 'vault'), clock: systemClock, log });
await mkdir(join(folder, 'stores'), { recursive: true });
for await (const line of createInterface({ input: process.stdin })) {
  // The cast holds: the test writes these lines.
  const order = JSON.parse(line) as TokenOrder;
  await vault.put('acme', Buffer.from(order.token));
  const store = await mkdtemp(join(folder, 'stores', 's-'));
  const outcome = await carryOut(order, vault, store).catch((error: unknown) => {
    log.error({ err: error }, 'the order failed');
    const code = error instanceof PratiqueError ? error.code : 'internal/bug';
    return { said: describeError(error), code };
  });
  await rm(store, { recursive: true, force: true });
  process.stdout.write(`${JSON.stringify(outcome)}\n`);
}
vault.close();
