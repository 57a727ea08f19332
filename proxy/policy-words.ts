// A policy as people write it, in files and on the command line, and as the model has it: durations in words, lists with commas.
import { PratiqueError } from '../src/base/errors.ts';
import { nearestWord } from '../src/base/nearest-word.ts';
import { isPolicyKey, type Policy, PolicySchema } from '../src/model/policy.ts';
import type { FilePolicy } from './config-schema.ts';
import { durationMs, shortDuration } from './duration.ts';

/** The keys that have another name where people write them, because their value has a unit there. */
const DURATION_KEYS = {
  metadataAge: 'metadataAgeMaxMs',
  healthTimeout: 'healthTimeoutMs',
  runDeadline: 'runDeadlineMs',
} as const;
type DurationWord = keyof typeof DURATION_KEYS;

/** What is wrong with a value, by the key as it was written. */
export type WordFault = { readonly word: string; readonly message: string };
export type Understood =
  | { readonly kind: 'policy'; readonly policy: Partial<Policy> }
  | { readonly kind: 'fault'; readonly fault: WordFault };

/** The policy of a file's table, which fits its schema; only the bounds of durations are left to be checked. */
export function policyOfFile(table: FilePolicy): Understood {
  const { metadataAge, healthTimeout, runDeadline, ...plain } = table;
  if (metadataAge !== undefined && plain.metadataAgeMaxMs !== undefined) {
    return fault('metadataAgeMaxMs', 'says the same as `metadataAge`: keep that one');
  }
  const policy: Partial<Policy> = { ...plain };
  for (const [word, text] of Object.entries({ metadataAge, healthTimeout, runDeadline })) {
    if (text === undefined) continue;
    const key = DURATION_KEYS[word as DurationWord]; // The cast holds: these are the table's keys.
    const ms = boundedDuration(key, text);
    if (typeof ms === 'string') return fault(word, ms);
    policy[key] = ms;
  }
  return { kind: 'policy', policy };
}

/** A policy as a file would say it. */
export function fileOfPolicy(policy: Partial<Policy>): FilePolicy {
  const { metadataAgeMaxMs, healthTimeoutMs, runDeadlineMs, ...plain } = policy;
  return {
    ...plain,
    ...(metadataAgeMaxMs === undefined ? {} : { metadataAge: shortDuration(metadataAgeMaxMs) }),
    ...(healthTimeoutMs === undefined ? {} : { healthTimeout: shortDuration(healthTimeoutMs) }),
    ...(runDeadlineMs === undefined ? {} : { runDeadline: shortDuration(runDeadlineMs) }),
  };
}

/** The name under which people write a key. */
export function wordOfKey(key: keyof Policy): string {
  return Object.entries(DURATION_KEYS).find(([, own]) => own === key)?.[0] ?? key;
}

/** What `vm set` asks for: keys that get a value, keys that are given back to the group and the default, another group. */
export type PolicyChange = {
  readonly set: Partial<Policy>;
  readonly unset: readonly (keyof Policy)[];
  /** Absent: it stays in its group; null: in none but one whose patterns match its name. */
  readonly group?: string | null;
};

/**
 * `key=value` pairs. Lists have commas between their entries, `[]` is the empty list, and nothing after the `=` gives the
 * key back. Throws PratiqueError `usage/policy` naming the pair.
 */
export function parseSettings(pairs: readonly string[]): PolicyChange {
  const set: Partial<Record<keyof Policy, unknown>> = {};
  const unset: (keyof Policy)[] = [];
  let group: string | null | undefined;
  for (const pair of pairs) {
    const at = pair.indexOf('=');
    if (at < 1) throw wrong(pair, 'is not of the form key=value');
    const [word, text] = [pair.slice(0, at), pair.slice(at + 1)];
    if (word === 'group') {
      group = text === '' ? null : text;
      continue;
    }
    const key = keyOfWord(word);
    if (key === null) {
      const near = nearestWord(word, ['group', ...Object.keys(PolicySchema.properties).map(wordOfSchemaKey)]);
      throw wrong(pair, `\`${word}\` is no key of a policy${near === null ? '' : `; the nearest is \`${near}\``}`);
    }
    if (text === '') unset.push(key);
    else set[key] = readValue(key, text, pair);
  }
  // The cast holds: readValue gave each key a value of its kind; the daemon checks the whole against the schema.
  return { set: set as Partial<Policy>, unset, ...(group === undefined ? {} : { group }) };
}

const wordOfSchemaKey = (key: string): string => (isPolicyKey(key) ? wordOfKey(key) : key);

function keyOfWord(word: string): keyof Policy | null {
  if (Object.hasOwn(DURATION_KEYS, word)) return DURATION_KEYS[word as DurationWord]; // The cast holds: it is one of its keys.
  const hasOtherName = Object.values<string>(DURATION_KEYS).includes(word);
  return isPolicyKey(word) && !hasOtherName ? word : null;
}

function readValue(key: keyof Policy, text: string, pair: string): unknown {
  // The cast holds: every typebox schema is a JSON Schema object.
  const schema = PolicySchema.properties[key] as {
    readonly type?: string;
    readonly anyOf?: readonly { const: string }[];
  };
  switch (schema.type) {
    case 'array':
      return text === '[]' ? [] : text.split(',').map((entry) => entry.trim());
    case 'boolean':
      if (text === 'true' || text === 'false') return text === 'true';
      throw wrong(pair, 'takes true or false');
    case 'integer': {
      const ms = boundedDuration(key, text);
      if (typeof ms === 'string') throw wrong(pair, ms);
      return ms;
    }
    default: {
      const words = (schema.anyOf ?? []).map((each) => each.const);
      if (words.includes(text)) return text;
      throw wrong(pair, `takes one of ${words.join(', ')}`);
    }
  }
}

/** Milliseconds within the bounds of the key's schema, or what is wrong. */
function boundedDuration(key: keyof Policy, text: string): number | string {
  const ms = durationMs(text);
  if (ms === null) return 'must be a duration such as "90m", "24h" or "7d"';
  // The cast holds: the keys with durations are integers of the schema.
  const { minimum = 0, maximum = Number.MAX_SAFE_INTEGER } = PolicySchema.properties[key] as {
    readonly minimum?: number;
    readonly maximum?: number;
  };
  if (ms < minimum) return `must be at least ${shortDuration(minimum)}`;
  return ms > maximum ? `must be at most ${shortDuration(maximum)}` : ms;
}

const fault = (word: string, message: string): Understood => ({ kind: 'fault', fault: { word, message } });

function wrong(pair: string, problem: string): PratiqueError {
  return new PratiqueError('usage/policy', `${pair}: ${problem}`, { next: 'see docs/policy.md for all keys' });
}
