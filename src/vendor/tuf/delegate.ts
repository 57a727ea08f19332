// Delegation: a team asks with a request that its own keys have signed, the owner lets it speak for its product only.
import { readFile } from 'node:fs/promises';
import { type Static, Type } from 'typebox';
import { type Clock, isoTime } from '../../base/clock.ts';
import { writeDurably } from '../../base/durable-file.ts';
import { describeError } from '../../base/errors.ts';
import { METADATA_BYTES_MAX, TUF_DELEGATIONS_MAX, TUF_SIGNATURES_MAX } from '../../base/limits.ts';
import { makeParser } from '../../base/parse.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import { keyIdOf, makeKey, openKeyRing, refuseNesting, type SigningKey, shortId, signWith } from './keys.ts';
import { guardMetadata, newBudget } from './metadata-guard.ts';
import { DelegatedRole, Delegations, Key, Metadata, MetadataKind, Targets } from './models.ts';
import { readOffer } from './offer.ts';
import { describePublication, type Publication } from './publication.ts';
import { type Published, readRepository, requirePublished, withLock } from './repository.ts';
import {
  EXPIRES_DAYS,
  type ExpiresDays,
  expiryOf,
  nextTargets,
  type SignOptions,
  SPEC_VERSION,
  signAndWrite,
} from './sign.ts';

const REQUEST_FIELD = 'x-pratique-delegation';

const RequestSchema = Type.Object({
  product: Type.String({ maxLength: 128, pattern: '^[A-Za-z0-9][A-Za-z0-9._+-]*$' }),
  threshold: Type.Integer({ minimum: 1, maximum: TUF_SIGNATURES_MAX }),
  /** Public keys by their ids, as they stand in metadata. */
  keys: Type.Record(
    Type.String({ pattern: '^[0-9a-f]{64}$' }),
    Type.Object({
      keytype: Type.Literal('ed25519'),
      scheme: Type.Literal('ed25519'),
      keyval: Type.Object({ public: Type.String({ pattern: '^[0-9a-f]{64}$' }) }),
    }),
  ),
});
type Request = Static<typeof RequestSchema>;

const parseRequest = makeParser(RequestSchema, 'usage/tuf-delegation');

/** The name of the role that signs a product's releases. */
export function productRole(product: string): string {
  return `product-${product}`;
}

export type RequestOptions = {
  readonly product: string;
  /** Folders of the team's keys; in one that holds none a key is made. All of them may sign. */
  readonly keys: readonly string[];
  /** How many of the keys must sign. */
  readonly threshold: number;
  /** The repository, if the product has a role there already whose releases are to be taken over. */
  readonly repository: string | null;
  /** The file to write. */
  readonly out: string;
  readonly clock: Clock;
};

export type RequestResult = {
  readonly product: string;
  readonly path: string;
  readonly threshold: number;
  readonly keys: readonly { readonly id: string; readonly path: string }[];
};

/**
 * Writes the request of a team: its public keys and the first version of its role, signed by them; no secret is in it.
 * Throws VendorError `usage/tuf-key` or `usage/tuf-delegation`.
 */
export async function requestDelegation(options: RequestOptions): Promise<RequestResult> {
  const { product, threshold, repository, clock, out } = options;
  const keys = await teamKeys(options);
  const shown = Object.fromEntries(keys.map((key) => [key.id, key.shown.toJSON()]));
  const request = parseRequest({ product, threshold, keys: shown }, 'the request');
  if (threshold > keys.length) {
    throw new VendorError('usage/tuf-key', `${threshold} of ${keys.length} keys cannot sign`, {
      next: 'give a folder for each key after --keys, or a lower --threshold',
    });
  }
  const old = repository === null ? undefined : await currentRole(repository, product);
  const expires = isoTime(clock.nowMs() + EXPIRES_DAYS.targets * 86_400_000);
  const targets = new Targets({
    version: (old?.version ?? 0) + 1,
    expires: `${expires.slice(0, 19)}Z`,
    specVersion: SPEC_VERSION,
    targets: old?.targets ?? {},
    // The cast holds: a request is JSON.
    unrecognizedFields: { [REQUEST_FIELD]: request as never },
  });
  const metadata = new Metadata(targets);
  for (const key of keys) signWith(key, metadata);
  await writeDurably(out, `${JSON.stringify(metadata.toJSON())}\n`, 0o644);
  return { product, path: out, threshold, keys: keys.map(({ id, path }) => ({ id, path })) };
}

async function teamKeys({ product, keys: folders }: RequestOptions): Promise<readonly SigningKey[]> {
  const all: SigningKey[] = [];
  for (const folder of new Set(folders)) {
    const here = (await openKeyRing([folder])).all();
    all.push(...(here.length > 0 ? here : [await makeKey(folder, productRole(product))]));
  }
  return [...new Map(all.map((key) => [key.id, key])).values()];
}

async function currentRole(repository: string, product: string): Promise<Targets | undefined> {
  const before = requirePublished(await readRepository(repository));
  return before.roles.get(productRole(product))?.metadata.signed;
}

export type DelegateOptions = {
  readonly repository: string;
  readonly keys: readonly string[];
  readonly clock: Clock;
  readonly expiresDays?: ExpiresDays;
};

export type DelegateResult = {
  readonly product: string;
  readonly role: string;
  readonly paths: readonly string[];
  readonly threshold: number;
  readonly keys: readonly string[];
  readonly publication: Publication;
};

/**
 * Lets the keys of a request sign the releases of its product, and nothing else. A request for a product that is delegated
 * already replaces its keys. Throws VendorError `usage/tuf-delegation` for a request that is not in order.
 */
export async function delegateProduct(
  options: DelegateOptions & { readonly request: string },
): Promise<DelegateResult> {
  refuseNesting(options.repository, options.keys);
  const { request, metadata } = await readRequest(options.request);
  const role = productRole(request.product);
  return await changeDelegations(options, { role, request, metadata });
}

/** Takes a product back from its team: its releases are on offer no more. */
export async function revokeProduct(options: DelegateOptions & { readonly product: string }): Promise<Publication> {
  refuseNesting(options.repository, options.keys);
  return await withLock(options.repository, async () => {
    const { signing, targets } = await openDelegations(options);
    const role = productRole(options.product);
    const { roles = {}, keys = {} } = targets.delegations ?? {};
    if (!Object.hasOwn(roles, role)) {
      throw new VendorError('usage/tuf-delegation', `the product ${printable(options.product)} is not delegated`);
    }
    const kept = Object.values(roles).filter(({ name }) => name !== role);
    const next = withDelegations(targets, kept, keys);
    await signAndWrite(signing, { targets: new Map([['targets', next]]), isSnapshotForced: true });
    return await describePublication(options, [], true);
  });
}

type Asked = { readonly role: string; readonly request: Request; readonly metadata: Metadata<Targets> };

async function changeDelegations(
  options: DelegateOptions,
  { role, request, metadata }: Asked,
): Promise<DelegateResult> {
  return await withLock(options.repository, async () => {
    const { signing, targets, before } = await openDelegations(options);
    requireNewer(before, role, metadata);
    const { roles = {}, keys = {} } = targets.delegations ?? {};
    const paths = [`${request.product}/*`];
    const keyIDs = Object.keys(request.keys);
    const { threshold } = request;
    const asked = new DelegatedRole({ name: role, keyIDs, threshold, terminating: true, paths });
    const others = Object.values(roles);
    const isKnown = others.some(({ name }) => name === role);
    const all = isKnown ? others.map((each) => (each.name === role ? asked : each)) : [...others, asked];
    if (all.length > TUF_DELEGATIONS_MAX) {
      throw new VendorError('usage/tuf-delegation', `a repository has at most ${TUF_DELEGATIONS_MAX} delegations`);
    }
    const next = withDelegations(targets, all, { ...keys, ...keysOf(request) });
    await signAndWrite(signing, {
      targets: new Map([['targets', next]]),
      signedTargets: new Map([[role, metadata]]),
      isSnapshotForced: true,
    });
    const publication = await describePublication(options, [], true);
    return { product: request.product, role, paths, threshold, keys: keyIDs.map(shortId), publication };
  });
}

async function openDelegations(
  options: DelegateOptions,
): Promise<{ readonly before: Published; readonly signing: SignOptions; readonly targets: Targets }> {
  const before = requirePublished(await readRepository(options.repository));
  const days = options.expiresDays === undefined ? {} : { expiresDays: options.expiresDays };
  const ring = await openKeyRing(options.keys);
  const signing: SignOptions = { clock: options.clock, ring, before, root: before.root.signed, ...days };
  const old = before.roles.get('targets')?.metadata.signed.targets ?? {};
  return { before, signing, targets: nextTargets(before, 'targets', expiryOf(signing, 'targets'), old) };
}

function withDelegations(
  targets: Targets,
  roles: readonly DelegatedRole[],
  keys: Readonly<Record<string, Key>>,
): Targets {
  const used = new Set(roles.flatMap(({ keyIDs }) => keyIDs));
  const delegations = new Delegations({
    keys: Object.fromEntries(Object.entries(keys).filter(([id]) => used.has(id))),
    roles: Object.fromEntries(roles.map((role) => [role.name, role])),
  });
  const { delegations: _old, ...rest } = targets;
  return new Targets(roles.length === 0 ? rest : { ...rest, delegations });
}

function requireNewer(before: Published, role: string, metadata: Metadata<Targets>): void {
  const seen = before.visible?.snapshot.signed.meta[`${role}.json`]?.version ?? 0;
  const { version } = metadata.signed;
  if (version > seen) return;
  throw new VendorError('usage/tuf-delegation', `the request has version ${version} of ${role}, clients have ${seen}`, {
    next: 'make the request anew with --repository, so that it takes over what is published',
  });
}

const keysOf = (request: Request): Record<string, Key> =>
  Object.fromEntries(Object.entries(request.keys).map(([id, key]) => [id, Key.fromJSON(id, key)]));

/** Reads what a team sent: signed by the keys that it names, and about its own product only. */
async function readRequest(path: string): Promise<{ readonly request: Request; readonly metadata: Metadata<Targets> }> {
  const what = `the request ${printable(path, 1_000)}`;
  const next = 'ask the team for a new one: `pratique vendor publish request`';
  try {
    const bytes = await readFile(path);
    if (bytes.length > METADATA_BYTES_MAX) throw new Error(`it is larger than ${METADATA_BYTES_MAX} bytes`);
    guardMetadata(bytes, path, newBudget());
    const metadata = Metadata.fromJSON(MetadataKind.Targets, JSON.parse(bytes.toString('utf8')));
    const request = parseRequest(metadata.signed.unrecognizedFields[REQUEST_FIELD], what);
    const role = productRole(request.product);
    const keyIDs = Object.keys(request.keys);
    // All teams' keys stand in one table by their ids: a key under another's id would take that one's place.
    const isForged = Object.entries(request.keys).some(([id, { keyval }]) => keyIdOf(keyval.public) !== id);
    if (isForged) throw new Error("the id of one of its keys is not that key's");
    // Every key has to sign, not only as many as must later: each proves that somebody holds it.
    const asked = new DelegatedRole({ name: role, keyIDs, threshold: keyIDs.length, terminating: true, paths: [] });
    const delegations = new Delegations({ keys: keysOf(request), roles: { [role]: asked } });
    const terms = { version: 1, expires: metadata.signed.expires, specVersion: SPEC_VERSION };
    new Metadata(new Targets({ ...terms, delegations })).verifyDelegate(role, metadata);
    if (request.threshold > keyIDs.length) throw new Error('its threshold is above the number of its keys');
    if (metadata.signed.delegations !== undefined) throw new Error('it delegates further');
    for (const target of Object.values(metadata.signed.targets))
      readOffer('request', target, { isConsistent: true, role });
    return { request, metadata };
  } catch (cause) {
    throw new VendorError('usage/tuf-delegation', `${what} is not in order: ${describeError(cause)}`, { next });
  }
}
