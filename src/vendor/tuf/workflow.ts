// One round of the TUF client workflow (specification, section 5) against one server. tuf-js verifies each step.
import type { Targets } from '@tufjs/models';
import { TrustedMetadataStore } from 'tuf-js/dist/store.js';
import type { PratiqueError } from '../../base/errors.ts';
import { HttpError } from '../../base/http-fetch.ts';
import {
  METADATA_BYTES_MAX,
  TUF_DELEGATED_BYTES_MAX,
  TUF_ROOT_BYTES_MAX,
  TUF_ROOT_ROTATIONS_MAX,
  TUF_TARGETS_MAX,
  TUF_TIMESTAMP_BYTES_MAX,
} from '../../base/limits.ts';
import { VendorError } from '../errors.ts';
import { type FoundTarget, startWalk, targetAt, type Visit } from './delegations.ts';
import { guardMetadata, newBudget } from './metadata-guard.ts';
import { type Complete, type Trusted, type VerifiedMetadata, verifiedOf } from './trust-state.ts';
import { tufErrorOf } from './verdicts.ts';

/** Fetches a metadata file by its name, bounded. Throws HttpError. */
export type FetchFile = (name: string, sizeBytesMax: number) => Promise<Uint8Array>;

/** How far down the delegations a round goes: all of them, none, or those for one target path. */
export type Want =
  | { readonly kind: 'all' }
  | { readonly kind: 'top-level' }
  | { readonly kind: 'path'; readonly path: string };

export type RoundDeps = {
  readonly fetch: FetchFile;
  readonly nowMs: number;
  readonly want: Want;
  /** The last complete set, parsed and as signed: delegated roles are taken from it, and all of it when nothing is new. */
  readonly before: { readonly complete: Complete; readonly verified: VerifiedMetadata | null } | null;
};

export type Round = {
  /** What counts from now on, also when the round failed. */
  readonly trusted: Trusted;
  readonly outcome:
    | {
        readonly kind: 'done';
        readonly complete: Complete;
        readonly verified: VerifiedMetadata;
        readonly found: FoundTarget | null;
      }
    | { readonly kind: 'failed'; readonly failure: PratiqueError };
};

/**
 * Each role counts as soon as it is verified, also when a later step fails: a new root and a newer timestamp must not be
 * forgotten. Never throws for what the server did.
 */
export async function runRound(trusted: Trusted, deps: RoundDeps): Promise<Round> {
  const round = startRound(trusted, deps);
  try {
    await updateRoot(round);
    await updateTimestamp(round);
    const unchanged = takeUnchanged(round);
    if (unchanged !== null) return { trusted: round.trusted, outcome: unchanged };
    await updateSnapshot(round);
    const { roles, texts, found } = await updateTargets(round);
    return { trusted: round.trusted, outcome: { kind: 'done', ...completeOf(round, roles, texts), found } };
  } catch (cause) {
    return { trusted: round.trusted, outcome: { kind: 'failed', failure: tufErrorOf(cause) } };
  }
}

type RunningRound = {
  readonly deps: RoundDeps;
  readonly store: TrustedMetadataStore;
  /** Grows with the round. */
  readonly trusted: Trusted;
  readonly fetch: FetchFile;
};

function startRound(trusted: Trusted, deps: RoundDeps): RunningRound {
  const store = new TrustedMetadataStore(Buffer.from(trusted.root));
  // TUF 5.1: one fixed time for the whole round. tuf-js takes the system's; the host's clock is ours.
  if (!Reflect.set(store, 'referenceTime', new Date(deps.nowMs))) throw new Error('assertion failed: the time is set');
  const budget = newBudget();
  const fetch: FetchFile = async (name, sizeBytesMax) => {
    const bytes = await deps.fetch(name, sizeBytesMax);
    guardMetadata(bytes, name, budget);
    return bytes;
  };
  return { deps, store, trusted: { ...trusted }, fetch };
}

/** TUF 5.3: every newer root, one after another, each signed by the one before it and by itself. */
async function updateRoot({ store, trusted, fetch }: RunningRound): Promise<void> {
  for (let rotations = 0; ; rotations += 1) {
    const name = `${store.root.signed.version + 1}.root.json`;
    // The newest root is the one after which there is none; a server that always has one more is not followed for ever.
    const bytes = await fetch(name, TUF_ROOT_BYTES_MAX).catch((error: unknown) => {
      if (error instanceof HttpError && (error.status === 404 || error.status === 403)) return null;
      throw error;
    });
    if (bytes === null) return;
    if (rotations >= TUF_ROOT_ROTATIONS_MAX) return;
    store.updateRoot(Buffer.from(bytes));
    trusted.root = textOf(bytes);
  }
}

const textOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('utf8');

/** Loads what we have of a role; whatever is wrong with it, the newer one from the server decides. */
function tryLocal(text: string | undefined, load: (bytes: Buffer) => void): boolean {
  if (text === undefined) return false;
  try {
    load(Buffer.from(text));
    return true;
  } catch {
    return false;
  }
}

/** TUF 5.4. An expired one of ours still says below which version nothing is accepted. */
async function updateTimestamp({ deps, store, trusted, fetch }: RunningRound): Promise<void> {
  // Before ours is looked at: with an expired root nothing is verified, and ours must not be forgotten for that.
  if (store.root.signed.isExpired(new Date(deps.nowMs))) throw new Error('root.json is expired');
  tryLocal(trusted.timestamp, (bytes) => store.updateTimestamp(bytes));
  const own = store.timestamp;
  // TUF 5.3.11: one whose keys were rotated away is trusted no more, which is how a vendor recovers from a fast-forward.
  if (own === undefined) delete trusted.timestamp;
  const bytes = Buffer.from(await fetch('timestamp.json', TUF_TIMESTAMP_BYTES_MAX));
  try {
    store.updateTimestamp(bytes);
    trusted.timestamp = textOf(bytes);
  } catch (error) {
    const isEqual = error instanceof Error && /is equal to current version/.test(error.message);
    if (!isEqual || own === undefined) throw error;
    if (own.signed.isExpired(new Date(deps.nowMs))) throw new Error('timestamp.json is expired');
  }
}

/** Nothing new is the common case, and parsing two thousand targets again costs most of a second of the process. */
function takeUnchanged({ deps, trusted }: RunningRound): Round['outcome'] | null {
  const { before, want, nowMs } = deps;
  if (want.kind !== 'all' || before === null || before.verified === null) return null;
  const { complete, verified } = before;
  const isSame = complete.root === trusted.root && complete.timestamp === trusted.timestamp;
  if (!isSame || nowMs >= verified.expiresAtMs) return null;
  const checked = { checkedAtMs: nowMs };
  return { kind: 'done', complete: { ...complete, ...checked }, verified: { ...verified, ...checked }, found: null };
}

/** TUF 5.5. */
async function updateSnapshot({ store, trusted, fetch }: RunningRound): Promise<void> {
  const isLoaded = tryLocal(trusted.snapshot, (bytes) => store.updateSnapshot(bytes, true));
  if (store.snapshot === undefined) delete trusted.snapshot;
  if (isLoaded) return;
  const { version, length } = store.timestamp?.signed.snapshotMeta ?? { version: 0 };
  const name = store.root.signed.consistentSnapshot ? `${version}.snapshot.json` : 'snapshot.json';
  const bytes = await fetch(name, boundOf(length));
  store.updateSnapshot(Buffer.from(bytes));
  trusted.snapshot = textOf(bytes);
}

const boundOf = (length: number | undefined): number => Math.min(length ?? METADATA_BYTES_MAX, METADATA_BYTES_MAX);

type LoadedRoles = {
  readonly roles: ReadonlyMap<string, Targets>;
  /** As signed, by role, without the top-level one. */
  readonly texts: Readonly<Record<string, string>>;
  readonly found: FoundTarget | null;
};

/** TUF 5.6: the top-level targets and the delegated roles that are wanted. */
async function updateTargets(round: RunningRound): Promise<LoadedRoles> {
  const { want } = round.deps;
  const path = want.kind === 'path' ? want.path : null;
  const roles = new Map<string, Targets>();
  const texts = new Map<string, string>();
  const walk = startWalk(path);
  let targetsTotal = 0;
  let bytesTotal = 0;
  for (let visit = walk.next(); visit !== null; visit = walk.next()) {
    const { text, targets } = await loadRole(round, visit);
    if (visit.isRepeat) continue;
    roles.set(visit.role, targets);
    if (visit.role === 'targets') round.trusted.targets = text;
    else texts.set(visit.role, text);
    targetsTotal += Object.keys(targets.targets).length;
    bytesTotal += text.length;
    if (targetsTotal > TUF_TARGETS_MAX || bytesTotal > TUF_DELEGATED_BYTES_MAX) throw tooLarge();
    const target = path === null ? null : targetAt(targets, path);
    if (target !== null) return { roles, texts: Object.fromEntries(texts), found: { role: visit.role, target } };
    if (want.kind !== 'top-level') walk.enter(visit, targets);
  }
  return { roles, texts: Object.fromEntries(texts), found: null };
}

function tooLarge(): VendorError {
  const what = `more than ${TUF_TARGETS_MAX} targets, or ${TUF_DELEGATED_BYTES_MAX} bytes of metadata, in all roles together`;
  return new VendorError('vendor-ill/tuf-too-many', `the repository has ${what}`, {
    next: 'ask the vendor; what was verified before stays',
  });
}

/** One role of targets: ours if the snapshot still means it, else the server's. A second delegator must vouch for it too. */
async function loadRole(
  round: RunningRound,
  { role, parent, isRepeat }: Visit,
): Promise<{ text: string; targets: Targets }> {
  const { store, deps, trusted } = round;
  if (isRepeat) return verifyAgain(store, role, parent);
  const delegated = deps.before?.complete.delegated ?? {};
  const kept = role === 'targets' ? trusted.targets : Object.hasOwn(delegated, role) ? delegated[role] : undefined;
  const load = (bytes: Buffer) => store.updateDelegatedTargets(bytes, role, parent);
  let text = kept;
  if (text === undefined || !tryLocal(text, load)) {
    const bytes = await fetchRole(round, role);
    load(Buffer.from(bytes));
    text = textOf(bytes);
  }
  const loaded = store.getRole(role);
  if (loaded === undefined) throw new Error(`assertion failed: ${role} is loaded`);
  return { text, targets: loaded.signed };
}

async function fetchRole({ store, fetch }: RunningRound, role: string): Promise<Uint8Array> {
  const all = store.snapshot?.signed.meta ?? {};
  const meta = Object.hasOwn(all, `${role}.json`) ? all[`${role}.json`] : undefined;
  if (meta === undefined) throw new Error(`Missing ${role}.json in snapshot`);
  // A role's name is the vendor's, and may be anything: it is one component of the URL.
  const file = `${encodeURIComponent(role)}.json`;
  return await fetch(store.root.signed.consistentSnapshot ? `${meta.version}.${file}` : file, boundOf(meta.length));
}

function verifyAgain(store: TrustedMetadataStore, role: string, parent: string): { text: string; targets: Targets } {
  const loaded = store.getRole(role);
  if (loaded === undefined) throw new Error(`assertion failed: ${role} was loaded before`);
  store.getRole(parent)?.verifyDelegate(role, loaded);
  return { text: '', targets: loaded.signed };
}

function completeOf(
  { deps, store, trusted }: RunningRound,
  roles: ReadonlyMap<string, Targets>,
  texts: Readonly<Record<string, string>>,
): { readonly complete: Complete; readonly verified: VerifiedMetadata } {
  const { root, timestamp, snapshot, targets } = trusted;
  const isWhole = timestamp !== undefined && snapshot !== undefined && targets !== undefined;
  if (!isWhole || store.timestamp === undefined || store.snapshot === undefined) {
    throw new Error('assertion failed: a round that succeeds is complete');
  }
  const kept = deps.want.kind === 'all' ? {} : deps.before?.complete.delegated;
  const delegated = { ...kept, ...texts };
  const { consistentSnapshot } = store.root.signed;
  const others = { root: store.root.signed, timestamp: store.timestamp.signed, snapshot: store.snapshot.signed };
  return {
    complete: { checkedAtMs: deps.nowMs, root, timestamp, snapshot, targets, delegated },
    verified: verifiedOf(deps.nowMs, consistentSnapshot, roles, others),
  };
}
