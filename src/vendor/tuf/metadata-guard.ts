// The first guard on unverified metadata: bounded in structure and work before anybody else parses them.
import { isDeepStrictEqual } from 'node:util';
import {
  NAME_CHARS_MAX,
  TUF_DELEGATION_PATHS_MAX,
  TUF_DELEGATIONS_MAX,
  TUF_FILE_STEPS_MAX,
  TUF_OBJECT_FIELDS_MAX,
  TUF_REFRESH_STEPS_MAX,
  TUF_SIGNATURES_MAX,
} from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';

/** Counts what one refresh has looked at; a new one for each refresh. */
export type GuardBudget = { stepsLeft: number; pathsLeft: number };

/** The budget of one refresh. */
export function newBudget(): GuardBudget {
  return { stepsLeft: TUF_REFRESH_STEPS_MAX, pathsLeft: TUF_DELEGATION_PATHS_MAX };
}

/** Nesting of metadata: the deepest honest ones, a target's description, have 9 levels. */
const DEPTH_MAX = 32;

/**
 * Throws VendorError `vendor-ill/tuf-too-many` for what would take too long to parse or verify, `vendor-ill/tuf-malformed`
 * for what tuf-js would misread. What is no JSON at all is left to tuf-js to refuse.
 */
export function guardMetadata(bytes: Uint8Array, file: string, budget: GuardBudget): void {
  const metadata = asRecord(parsed(bytes));
  const largest = largestObject(metadata, file);
  const signatures = lengthOf(metadata.signatures);
  if (signatures > TUF_SIGNATURES_MAX) throw tooMany(file, `${signatures} signatures`, TUF_SIGNATURES_MAX);
  // The parser copies an object once per field, and each verified signature forms the whole file again.
  const steps = largest ** 2 * (signatures + 1);
  if (steps > TUF_FILE_STEPS_MAX) throw tooMany(file, `${largest} entries with ${signatures} signatures`, null);
  budget.stepsLeft -= steps;
  if (budget.stepsLeft < 0) throw tooMany(file, 'more entries, together with the other roles,', null);
  const signed = asRecord(metadata.signed);
  guardVersions(signed, file);
  guardRoles(Object.values(asRecord(signed.roles)), asRecord(signed.keys), file);
  guardDelegations(asRecord(signed.delegations), file, budget);
}

function parsed(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch {
    return null;
  }
}

function asRecord(value: unknown): Readonly<Record<string, unknown>> {
  // The cast holds: an object's fields are unknown until they are looked at.
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

const lengthOf = (value: unknown): number => (Array.isArray(value) ? value.length : 0);

function largestObject(metadata: unknown, file: string): number {
  let largest = 0;
  let level: unknown[] = [metadata];
  for (let depth = 0; level.length > 0; depth += 1) {
    if (depth > DEPTH_MAX) throw tooMany(file, 'deeper nesting', DEPTH_MAX);
    const next: unknown[] = [];
    for (const value of level) {
      const fields = Object.values(asRecord(value));
      const isLimited = !Array.isArray(value);
      if (isLimited && fields.length > TUF_OBJECT_FIELDS_MAX) {
        throw tooMany(file, `an object of ${fields.length} fields`, TUF_OBJECT_FIELDS_MAX);
      }
      if (isLimited) largest = Math.max(largest, fields.length);
      for (const field of fields) if (field !== null && typeof field === 'object') next.push(field);
    }
    level = next;
  }
  return largest;
}

/** TUF 4.3: versions are whole numbers greater than zero. Above the safe ones adding one changes nothing. */
function guardVersions(signed: Readonly<Record<string, unknown>>, file: string): void {
  const versions = [signed, ...Object.values(asRecord(signed.meta))].map((each) => asRecord(each).version);
  for (const version of versions) {
    if (version === undefined || (Number.isSafeInteger(version) && Number(version) > 0)) continue;
    throw malformed(file, `the version ${printable(JSON.stringify(version) ?? '')} is no whole number above 0`);
  }
}

function guardDelegations(delegations: Readonly<Record<string, unknown>>, file: string, budget: GuardBudget): void {
  const { roles, succinct_roles: bins } = delegations;
  const list = Array.isArray(roles) ? roles : [];
  if (list.length > TUF_DELEGATIONS_MAX) throw tooMany(file, `${list.length} delegations`, TUF_DELEGATIONS_MAX);
  guardRoles([...list, bins], asRecord(delegations.keys), file);
  for (const role of list.map(asRecord)) {
    budget.pathsLeft -= lengthOf(role.paths) + lengthOf(role.path_hash_prefixes);
    const { name } = role;
    // tuf-js keeps roles in a plain object, so a name that every object has would be found there before it is loaded.
    const isFit = typeof name === 'string' && name !== '' && name.length <= NAME_CHARS_MAX && !(name in {});
    if (!isFit) throw malformed(file, `a delegated role cannot be named ${printable(JSON.stringify(name) ?? '')}`);
  }
  if (budget.pathsLeft < 0) throw tooMany(file, 'more delegated path patterns', TUF_DELEGATION_PATHS_MAX);
}

/** TUF 4.3 and 4.5: a threshold counts keys, so one key under two ids would count twice. */
function guardRoles(roles: readonly unknown[], keys: Readonly<Record<string, unknown>>, file: string): void {
  for (const role of roles.map(asRecord)) {
    const { keyids } = role;
    if (!Array.isArray(keyids)) continue;
    if (keyids.length > TUF_SIGNATURES_MAX)
      throw tooMany(file, `${keyids.length} keys of one role`, TUF_SIGNATURES_MAX);
    const values = keyids
      .filter((id) => Object.hasOwn(keys, String(id)))
      .map((id) => asRecord(keys[String(id)]).keyval);
    const isTwice = values.some((value, index) =>
      values.slice(0, index).some((each) => isDeepStrictEqual(each, value)),
    );
    if (isTwice) throw malformed(file, 'one key stands in it under two ids for one role');
  }
}

function tooMany(file: string, what: string, limit: number | null): VendorError {
  const rest = limit === null ? 'than can be verified in time' : `; ${limit} are the limit`;
  return new VendorError(
    'vendor-ill/tuf-too-many',
    `the metadata file ${printable(file)} has ${what}${limit === null ? ' ' : ''}${rest}`,
    {
      next: 'ask the vendor; what was verified before stays',
    },
  );
}

function malformed(file: string, problem: string): VendorError {
  return new VendorError('vendor-ill/tuf-malformed', `the metadata file ${printable(file)} is malformed: ${problem}`, {
    next: 'ask the vendor, or use another mirror',
  });
}
