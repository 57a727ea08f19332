// What we keep of one TUF repository, as signed, in one durable file; and how it is read again.
import { readFile } from 'node:fs/promises';
import { Metadata, MetadataKind, type Targets } from '@tufjs/models';
import { type Static, Type } from 'typebox';
import { digestOf } from '../../base/digest.ts';
import { TUF_ROOT_BYTES_MAX } from '../../base/limits.ts';
import { makeParser, parseJson } from '../../base/parse.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import { allTargets, type FoundTarget, startWalk } from './delegations.ts';
import { guardMetadata, newBudget } from './metadata-guard.ts';

const TrustedSchema = Type.Object({
  root: Type.String(),
  timestamp: Type.Optional(Type.String()),
  snapshot: Type.Optional(Type.String()),
  targets: Type.Optional(Type.String()),
});
/** The newest metadata seen of each role, as signed: what protects against rollback, also after a failed refresh. */
export type Trusted = Static<typeof TrustedSchema>;

const CompleteSchema = Type.Object({
  checkedAtMs: Type.Number(),
  root: Type.String(),
  timestamp: Type.String(),
  snapshot: Type.String(),
  targets: Type.String(),
  /** By role name. Their versions are the snapshot's, so nothing else has to be remembered of them. */
  delegated: Type.Optional(Type.Record(Type.String(), Type.String())),
});
/** A set that was complete and consistent when it was checked. */
export type Complete = Static<typeof CompleteSchema>;

const StateSchema = Type.Object({
  /** Digest of the root the operator gave: another one begins anew. */
  anchor: Type.String(),
  trusted: TrustedSchema,
  /** The last complete set: what releases are read from. */
  verified: Type.Union([Type.Null(), CompleteSchema]),
});
export type State = Static<typeof StateSchema>;

const parseState = makeParser(StateSchema, 'host-fault/tuf-state');

export type VerifiedMetadata = {
  readonly checkedAtMs: number;
  /** Wall time when the first of the roles expires, and which one that is. */
  readonly expiresAtMs: number;
  readonly firstToExpire: string;
  readonly isConsistentSnapshot: boolean;
  readonly targets: readonly FoundTarget[];
};

/** The operator's root, checked. Throws VendorError `usage/tuf-root`. */
export async function readAnchor(rootPath: string): Promise<string> {
  const where = `the trusted root ${printable(rootPath, 1_000)}`;
  const next = 'give the root.json that the vendor hands out by a trusted way';
  const bytes = await readFile(rootPath).catch((cause: unknown) => {
    throw new VendorError('usage/tuf-root', `${where} cannot be read`, { cause, next });
  });
  try {
    if (bytes.length > TUF_ROOT_BYTES_MAX) throw new Error(`it is larger than ${TUF_ROOT_BYTES_MAX} bytes`);
    guardMetadata(bytes, 'root.json', newBudget());
    const root = Metadata.fromJSON(MetadataKind.Root, JSON.parse(bytes.toString('utf8')));
    root.verifyDelegate(MetadataKind.Root, root);
  } catch (cause) {
    throw new VendorError('usage/tuf-root', `${where} is no TUF root signed by its own keys`, { cause, next });
  }
  return bytes.toString('utf8');
}

/** The kept state, or the beginning of one. Throws VendorError `host-fault/tuf-state` when it is damaged. */
export async function loadState(path: string, anchorText: string): Promise<State> {
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

/**
 * Reads the kept set again, signatures included: a file on our disk is no proof. Expiry is not asked here but by the
 * status. Null when there is none, or not of all roles. Throws VendorError `host-fault/tuf-state` when it is damaged.
 */
export function readVerified({ verified }: State, path: string): VerifiedMetadata | null {
  if (verified === null) return null;
  try {
    const root = Metadata.fromJSON(MetadataKind.Root, JSON.parse(verified.root));
    const timestamp = Metadata.fromJSON(MetadataKind.Timestamp, JSON.parse(verified.timestamp));
    const snapshot = Metadata.fromJSON(MetadataKind.Snapshot, JSON.parse(verified.snapshot));
    root.verifyDelegate(MetadataKind.Root, root);
    root.verifyDelegate(MetadataKind.Timestamp, timestamp);
    root.verifyDelegate(MetadataKind.Snapshot, snapshot);
    const roles = readRoles(root, { ...verified.delegated, targets: verified.targets });
    if (roles === null) return null;
    const signed = new Map([...roles].map(([name, role]) => [name, role.signed] as const));
    return verifiedOf(verified.checkedAtMs, root.signed.consistentSnapshot, signed, {
      root: root.signed,
      timestamp: timestamp.signed,
      snapshot: snapshot.signed,
    });
  } catch (cause) {
    throw new VendorError('host-fault/tuf-state', `${path} is damaged`, {
      cause,
      next: 'remove the file; trust then begins anew from the configured root',
    });
  }
}

type Delegator = { readonly verifyDelegate: Metadata<Targets>['verifyDelegate'] };

function readRoles(
  root: Delegator,
  texts: Readonly<Record<string, string>>,
): ReadonlyMap<string, Metadata<Targets>> | null {
  const roles = new Map<string, Metadata<Targets>>();
  const walk = startWalk(null);
  for (let visit = walk.next(); visit !== null; visit = walk.next()) {
    const { parent, role, isRepeat } = visit;
    const text = Object.hasOwn(texts, role) ? texts[role] : undefined;
    if (text === undefined) return null;
    const metadata = roles.get(role) ?? Metadata.fromJSON(MetadataKind.Targets, JSON.parse(text));
    (parent === 'root' ? root : roles.get(parent))?.verifyDelegate(role, metadata);
    roles.set(role, metadata);
    if (!isRepeat) walk.enter(visit, metadata.signed);
  }
  return roles;
}

/** Puts together what the rest of the vendor reads. */
export function verifiedOf(
  checkedAtMs: number,
  isConsistentSnapshot: boolean,
  roles: ReadonlyMap<string, Targets>,
  others: Readonly<Record<string, { readonly expires: string }>>,
): VerifiedMetadata {
  const expiries = [...Object.entries(others), ...roles].map(
    ([role, { expires }]) => ({ role, atMs: Date.parse(expires) }) as const,
  );
  const first = expiries.reduce((soonest, each) => (each.atMs < soonest.atMs ? each : soonest));
  return {
    checkedAtMs,
    expiresAtMs: first.atMs,
    firstToExpire: first.role,
    isConsistentSnapshot,
    targets: allTargets(roles),
  };
}
