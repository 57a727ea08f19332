// What we trust of one TUF repository, and how a refresh moves it on (TUF specification, section 5). All of it is one durable file.
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Metadata, MetadataKind, type Targets } from '@tufjs/models';
import { Updater } from 'tuf-js';
import { type Static, Type } from 'typebox';
import type { Clock } from '../../base/clock.ts';
import { digestOf } from '../../base/digest.ts';
import { writeDurably } from '../../base/durable-file.ts';
import { type ErrorCode, PratiqueError } from '../../base/errors.ts';
import type { HttpFetch } from '../../base/http-fetch.ts';
import {
  METADATA_BYTES_MAX,
  TUF_ROOT_BYTES_MAX,
  TUF_ROOT_ROTATIONS_MAX,
  TUF_TIMESTAMP_BYTES_MAX,
} from '../../base/limits.ts';
import { makeParser, parseJson } from '../../base/parse.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import { MetadataFetcher } from './fetcher.ts';

const ROLES = ['root', 'timestamp', 'snapshot', 'targets'] as const;

const StateSchema = Type.Object({
  /** Digest of the root the operator gave: another one begins anew. */
  anchor: Type.String(),
  /** The newest metadata seen of each role, as signed: what protects against rollback, also after a failed refresh. */
  trusted: Type.Object({
    root: Type.String(),
    timestamp: Type.Optional(Type.String()),
    snapshot: Type.Optional(Type.String()),
    targets: Type.Optional(Type.String()),
  }),
  /** The last set that was complete and consistent: what releases are read from. */
  verified: Type.Union([
    Type.Null(),
    Type.Object({
      checkedAtMs: Type.Number(),
      root: Type.String(),
      timestamp: Type.String(),
      snapshot: Type.String(),
      targets: Type.String(),
    }),
  ]),
});
type State = Static<typeof StateSchema>;

const parseState = makeParser(StateSchema, 'host-fault/tuf-state');

export type VerifiedMetadata = {
  readonly checkedAtMs: number;
  /** Wall time when the first of the four roles expires. */
  readonly expiresAtMs: number;
  readonly isConsistentSnapshot: boolean;
  readonly targets: Targets;
};

export type Trust = {
  /** The last complete verified metadata; null before the first refresh. */
  readonly verified: () => VerifiedMetadata | null;
  /** One round of the TUF client workflow. Throws VendorError; what was verified before stays. */
  readonly refresh: (signal: AbortSignal) => Promise<VerifiedMetadata>;
};

export type TrustDeps = {
  readonly metadataUrl: string;
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
  return {
    verified: () => verified,
    refresh: async (signal) => {
      const round = await runRound(deps, state.trusted, signal);
      const checkedAtMs = deps.clock.nowMs();
      const before = state.verified;
      const complete = round.failure === null ? completeSet(round.trusted, checkedAtMs) : before;
      const next: State = { ...state, trusted: round.trusted, verified: complete };
      await writeDurably(statePath, JSON.stringify(next));
      state = next;
      if (round.failure !== null) throw round.failure;
      // Nothing new is the common case, and reading a thousand targets again costs a second of the process.
      const read =
        verified !== null && sameSet(before, complete) ? { ...verified, checkedAtMs } : readVerified(next, statePath);
      if (read === null) throw new VendorError('internal/tuf-state', 'a refresh succeeded without complete metadata');
      verified = read;
      return read;
    },
  };
}

async function readAnchor(rootPath: string): Promise<string> {
  const where = `the trusted root ${printable(rootPath)}`;
  const next = 'give the root.json that the vendor hands out by a trusted way';
  const text = await readFile(rootPath, 'utf8').catch((cause: unknown) => {
    throw new VendorError('usage/tuf-root', `${where} cannot be read`, { cause, next });
  });
  try {
    const root = Metadata.fromJSON(MetadataKind.Root, JSON.parse(text));
    root.verifyDelegate(MetadataKind.Root, root);
  } catch (cause) {
    throw new VendorError('usage/tuf-root', `${where} is no TUF root signed by its own keys`, { cause, next });
  }
  return text;
}

async function loadState(path: string, anchorText: string): Promise<State> {
  const anchor = digestOf(anchorText);
  const begun: State = { anchor, trusted: { root: anchorText }, verified: null };
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
    throw new VendorError('host-fault/tuf-state', `reading ${path}`, { cause, next: 'check its permissions' });
  });
  if (text === null) return begun;
  const state = parseState(parseJson(text, path, 'host-fault/tuf-state'), path);
  // The operator gave another root: whatever the old one vouched for counts no more.
  return state.anchor === anchor ? state : begun;
}

function completeSet(trusted: State['trusted'], checkedAtMs: number): State['verified'] {
  const { root, timestamp, snapshot, targets } = trusted;
  if (timestamp === undefined || snapshot === undefined || targets === undefined) return null;
  return { checkedAtMs, root, timestamp, snapshot, targets };
}

function sameSet(before: State['verified'], after: State['verified']): boolean {
  return before !== null && after !== null && ROLES.every((role) => before[role] === after[role]);
}

/** Reads the kept set again, signatures included: a file on our disk is no proof. Expiry is not asked here but by the status. */
function readVerified(state: State, path: string): VerifiedMetadata | null {
  const { verified } = state;
  if (verified === null) return null;
  try {
    const root = Metadata.fromJSON(MetadataKind.Root, JSON.parse(verified.root));
    const timestamp = Metadata.fromJSON(MetadataKind.Timestamp, JSON.parse(verified.timestamp));
    const snapshot = Metadata.fromJSON(MetadataKind.Snapshot, JSON.parse(verified.snapshot));
    const targets = Metadata.fromJSON(MetadataKind.Targets, JSON.parse(verified.targets));
    root.verifyDelegate(MetadataKind.Root, root);
    root.verifyDelegate(MetadataKind.Timestamp, timestamp);
    root.verifyDelegate(MetadataKind.Snapshot, snapshot);
    root.verifyDelegate(MetadataKind.Targets, targets);
    const expiries = [root, timestamp, snapshot, targets].map(({ signed }) => Date.parse(signed.expires));
    return {
      checkedAtMs: verified.checkedAtMs,
      expiresAtMs: Math.min(...expiries),
      isConsistentSnapshot: root.signed.consistentSnapshot,
      targets: targets.signed,
    };
  } catch (cause) {
    throw new VendorError('host-fault/tuf-state', `${path} is damaged`, {
      cause,
      next: 'remove the file; trust then begins anew from the configured root',
    });
  }
}

type Round = { readonly trusted: State['trusted']; readonly failure: PratiqueError | null };

/**
 * One use of tuf-js' Updater (it is made for one) in a scratch folder. It stores each role there as soon as that is
 * verified, so whatever lies there afterwards is trusted, also when a later step failed: a new root and a newer
 * timestamp count from then on. tuf-js writes without fsync; we keep what it wrote with one.
 */
async function runRound(deps: TrustDeps, trusted: State['trusted'], signal: AbortSignal): Promise<Round> {
  const scratch = join(deps.folder, 'refresh');
  await rm(scratch, { recursive: true, force: true });
  await mkdir(scratch, { mode: 0o700 });
  for (const role of ROLES) {
    const text = trusted[role];
    if (text !== undefined) await writeFile(join(scratch, `${role}.json`), text);
  }
  const fetcher = new MetadataFetcher(deps.http, signal);
  const failure = await tryRefresh(deps, scratch, fetcher);
  signal.throwIfAborted();
  const stored = new Set(await readdir(scratch));
  const read = async (role: string) => await readFile(join(scratch, `${role}.json`), 'utf8');
  const round: State['trusted'] = { root: await read('root') };
  for (const role of ['timestamp', 'snapshot', 'targets'] as const) {
    if (stored.has(`${role}.json`)) round[role] = await read(role);
  }
  await rm(scratch, { recursive: true, force: true });
  return { trusted: round, failure };
}

async function tryRefresh(deps: TrustDeps, scratch: string, fetcher: MetadataFetcher): Promise<PratiqueError | null> {
  try {
    const updater = new Updater({
      metadataDir: scratch,
      metadataBaseUrl: deps.metadataUrl,
      fetcher,
      config: {
        rootMaxLength: TUF_ROOT_BYTES_MAX,
        timestampMaxLength: TUF_TIMESTAMP_BYTES_MAX,
        snapshotMaxLength: METADATA_BYTES_MAX,
        targetsMaxLength: METADATA_BYTES_MAX,
        maxRootRotations: TUF_ROOT_ROTATIONS_MAX,
      },
    });
    await updater.refresh();
    return null;
  } catch (cause) {
    return tufErrorOf(fetcher.failure ?? cause);
  }
}

/**
 * tuf-js does not export its error classes and turns those of snapshot and targets into text, so its wording (the version
 * is pinned, and the attack tests see each of these) tells them apart. First match wins.
 */
const VERDICTS: readonly { readonly pattern: RegExp; readonly code: ErrorCode; readonly next: string }[] = [
  {
    pattern: /is expired/,
    code: 'vendor-ill/tuf-expired',
    next: "check this host's clock; otherwise the vendor has stopped signing, or somebody holds its new metadata back",
  },
  {
    pattern: /is less than current version|Expected version \d+, got|Missing file .* in new snapshot/,
    code: 'vendor-ill/tuf-rollback',
    next: 'the server offers older metadata than before: ask the vendor, or use another mirror',
  },
  {
    pattern: /was signed by \d+\/\d+ keys/,
    code: 'vendor-ill/tuf-signature',
    next: 'the metadata are not signed by the keys you trust: ask the vendor before you trust others',
  },
  {
    pattern: /doesn't match timestamp|does not match snapshot|Expected (length|hash)|Missing .* in snapshot/,
    code: 'vendor-ill/tuf-mix-and-match',
    next: 'the metadata files do not belong together: try again later, or use another mirror',
  },
];

function tufErrorOf(cause: unknown): PratiqueError {
  if (cause instanceof PratiqueError) {
    const isEndless = cause.code === 'vendor-ill/too-large';
    const code = isEndless ? 'vendor-ill/tuf-endless-data' : cause.code;
    const next = cause.next === undefined ? {} : { next: cause.next };
    return new VendorError(code, 'the TUF metadata could not be fetched', { cause, ...next });
  }
  const text = cause instanceof Error ? cause.message : String(cause);
  const verdict = VERDICTS.find(({ pattern }) => pattern.test(text));
  if (verdict === undefined) {
    return new VendorError('vendor-ill/tuf-malformed', `the TUF metadata are malformed: ${printable(text)}`, {
      next: 'ask the vendor, or use another mirror',
    });
  }
  return new VendorError(verdict.code, `the TUF metadata are refused: ${printable(text)}`, { next: verdict.next });
}
