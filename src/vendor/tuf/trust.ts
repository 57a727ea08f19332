// What we trust of one TUF repository, and how a refresh moves it on, from whichever mirror serves us.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, trustedNowMs } from '../../base/clock.ts';
import { writeDurably } from '../../base/durable-file.ts';
import { describeError, type PratiqueError } from '../../base/errors.ts';
import { type HttpFetch, isUnreachable } from '../../base/http-fetch.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import type { FoundTarget } from './delegations.ts';
import { loadState, readAnchor, readVerified, type State, type VerifiedMetadata } from './trust-state.ts';
import { type FetchFile, type Round, runRound, type Want } from './workflow.ts';

export type Trust = {
  /** The last complete verified metadata; null before the first refresh. */
  readonly verified: () => VerifiedMetadata | null;
  /** One round of the TUF client workflow. Throws VendorError; what was verified before stays. */
  readonly refresh: (signal: AbortSignal) => Promise<VerifiedMetadata>;
  /** The same for the top-level roles only. */
  readonly refreshTopLevel: (signal: AbortSignal) => Promise<void>;
  /** The same for one target path: only the roles that may speak for it are fetched. Null: there is no such target. */
  readonly find: (path: string, signal: AbortSignal) => Promise<FoundTarget | null>;
  /** The trusted metadata as signed, by role. */
  readonly texts: () => ReadonlyMap<string, string>;
};

export type TrustDeps = {
  /** Folders with the metadata, tried in this order. */
  readonly metadataUrls: readonly string[];
  readonly rootPath: string;
  readonly folder: string;
  readonly http: HttpFetch;
  readonly clock: Clock;
};

/**
 * Loads the trust kept in `folder`, or begins it with the operator's root. Throws VendorError `usage/tuf-root` when that
 * root cannot be read, `host-fault/tuf-state` when the kept state is damaged.
 */
export async function loadTrust(deps: TrustDeps): Promise<Trust> {
  await mkdir(deps.folder, { recursive: true, mode: 0o700 });
  const statePath = join(deps.folder, 'trust.json');
  let state = await loadState(statePath, await readAnchor(deps.rootPath));
  let verified = readVerified(state, statePath);
  const run = async (want: Want, signal: AbortSignal): Promise<Extract<Round['outcome'], { kind: 'done' }>> => {
    const failures: Failure[] = [];
    for (const url of deps.metadataUrls) {
      const before = state.verified === null ? null : { complete: state.verified, verified };
      const fetch = fetchFrom(url, deps.http, signal);
      const { trusted, outcome } = await runRound(state.trusted, {
        fetch,
        nowMs: trustedNowMs(deps.clock),
        want,
        before,
      });
      signal.throwIfAborted();
      const next: State = { ...state, trusted, ...(outcome.kind === 'done' ? { verified: outcome.complete } : {}) };
      await writeDurably(statePath, JSON.stringify(next));
      state = next;
      if (outcome.kind === 'done') return outcome;
      failures.push({ url, failure: outcome.failure });
    }
    throw failureOf(failures);
  };
  return {
    verified: () => verified,
    refresh: async (signal) => {
      const done = await run({ kind: 'all' }, signal);
      verified = done.verified;
      return done.verified;
    },
    refreshTopLevel: async (signal) => void (await run({ kind: 'top-level' }, signal)),
    find: async (path, signal) => (await run({ kind: 'path', path }, signal)).found,
    texts: () => new Map([...Object.entries(state.verified?.delegated ?? {}), ...Object.entries(state.trusted)]),
  };
}

function fetchFrom(base: string, http: HttpFetch, signal: AbortSignal): FetchFile {
  const folder = base.endsWith('/') ? base : `${base}/`;
  return async (name, sizeBytesMax) => (await http.fetchBytes(folder + name, { sizeBytesMax, signal })).bytes;
}

type Failure = { readonly url: string; readonly failure: PratiqueError };

/** One error for all mirrors: it names each, and has the code of the first that could be reached, which says most. */
function failureOf(failures: readonly Failure[]): VendorError | PratiqueError {
  const [first] = failures;
  if (first === undefined) throw new Error('assertion failed: a vendor has a place');
  if (failures.length === 1) return first.failure;
  const { failure } = failures.find((each) => !isUnreachable(each.failure)) ?? first;
  const each = failures.map(({ url, failure: one }) => `${printable(url, 300)}: ${describeError(one)}`);
  const next = failure.next === undefined ? {} : { next: failure.next };
  return new VendorError(failure.code, `none of ${failures.length} mirrors could be used: ${each.join('; ')}`, next);
}
