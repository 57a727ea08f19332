// One layer of configuration: the named values and items of a file or a signed document, checked, each with its place.
import { type Static, Type } from 'typebox';
import {
  CONFIG_FILE_CHARS_MAX,
  CONFIG_ITEMS_MAX,
  FREE_TEXT_CHARS_MAX,
  GUEST_CONFIG_VALUES_MAX,
  GUEST_SECRET_BYTES_MAX,
  NAME_CHARS_MAX,
} from '../base/limits.ts';
import { type Misfit, makeCheck, misfitText } from '../base/schema-check.ts';
import { ApplyStepSchema, InterfaceSchema } from '../model/guest-config.ts';
import { HealthChecksSchema } from '../model/health.ts';
import { GuestConfigError } from './error.ts';

const strict = { additionalProperties: false } as const;
/** What named values may stand in; its form is checked once they are in their places. */
const text = Type.String({ maxLength: FREE_TEXT_CHARS_MAX });
const word = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });

export const ITEM_NAME_PATTERN = '^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}$';
export const VALUE_NAME_PATTERN = '^[A-Za-z_][A-Za-z0-9_.-]{0,63}$';
/** A path below the folder of secrets, without dot components. */
export const SECRET_NAME_PATTERN = '^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,100}(/[A-Za-z0-9_][A-Za-z0-9_.@-]{0,100}){0,4}$';

/** A secret by the name of its file on the host, or, in a document of the server, itself. */
export const SecretSchema = Type.Union([
  Type.Object({ secret: Type.String({ pattern: SECRET_NAME_PATTERN }) }, strict),
  Type.Object({ secretText: Type.String({ minLength: 1, maxLength: GUEST_SECRET_BYTES_MAX }) }, strict),
]);
export type Secret = Static<typeof SecretSchema>;

const ValueSchema = Type.Union([
  Type.String({ maxLength: CONFIG_FILE_CHARS_MAX }),
  Type.Integer(),
  Type.Boolean(),
  ...SecretSchema.anyOf,
]);
export type RawValue = Static<typeof ValueSchema>;

const content = Type.Union([Type.String({ maxLength: CONFIG_FILE_CHARS_MAX }), ...SecretSchema.anyOf]);
const file = {
  path: text,
  content,
  encoding: Type.Optional(Type.Literal('base64')),
  mode: Type.Optional(text),
  owner: Type.Optional(text),
  group: Type.Optional(text),
};
const RawFileSchema = Type.Object(file, strict);
export type RawFile = Static<typeof RawFileSchema>;

const RawInterfaceSchema = Type.Object(
  {
    ...InterfaceSchema.properties,
    mac: text,
    addresses: Type.Optional(Type.Array(text, { maxItems: 64 })),
    gateway4: Type.Optional(text),
    gateway6: Type.Optional(text),
    dns: Type.Optional(Type.Array(text, { maxItems: 8 })),
    search: Type.Optional(Type.Array(text, { maxItems: 16 })),
  },
  strict,
);
export type RawInterface = Static<typeof RawInterfaceSchema>;

const common = {
  /** The source's own version. */
  version: Type.Optional(Type.String({ minLength: 1, maxLength: 100, pattern: '^[A-Za-z0-9][A-Za-z0-9._~:-]*$' })),
  /** Texts stay as they are: nothing in them is a named value. */
  verbatim: Type.Optional(Type.Boolean()),
  apply: Type.Optional(Type.Array(ApplyStepSchema, { maxItems: 16 })),
  health: Type.Optional(HealthChecksSchema),
};
const RawItemSchema = Type.Union([
  Type.Object({ kind: Type.Literal('hostname'), hostname: text, ...common }, strict),
  Type.Object(
    {
      kind: Type.Literal('network'),
      interfaces: Type.Array(RawInterfaceSchema, { minItems: 1, maxItems: 16 }),
      ...common,
    },
    strict,
  ),
  Type.Object({ kind: Type.Literal('file'), ...file, ...common }, strict),
  Type.Object(
    {
      kind: Type.Literal('ssh-keys'),
      user: text,
      keys: Type.Array(Type.String({ maxLength: 8192 }), { maxItems: 100 }),
      exclusive: Type.Optional(Type.Boolean()),
      ...common,
    },
    strict,
  ),
  Type.Object(
    {
      kind: Type.Literal('product'),
      product: word,
      files: Type.Array(RawFileSchema, { minItems: 1, maxItems: 200 }),
      ...common,
    },
    strict,
  ),
]);
export type RawItem = Static<typeof RawItemSchema>;

const RemovalSchema = Type.Object({ remove: Type.Literal(true) }, strict);

/** The tables of a layer; what an item is, is checked one by one, for the sake of the message. */
const LayerSchema = Type.Object(
  {
    values: Type.Optional(
      Type.Record(Type.String({ pattern: VALUE_NAME_PATTERN }), ValueSchema, {
        ...strict,
        maxProperties: GUEST_CONFIG_VALUES_MAX,
      }),
    ),
    items: Type.Optional(
      Type.Record(Type.String({ pattern: ITEM_NAME_PATTERN }), Type.Unknown(), {
        ...strict,
        maxProperties: CONFIG_ITEMS_MAX,
      }),
    ),
  },
  strict,
);
const checkTables = makeCheck(LayerSchema);
const checkItem = makeCheck(RawItemSchema);
const checkRemoval = makeCheck(RemovalSchema);

export type Path = readonly (string | number)[];

/** Where a layer stands: `/etc/pratique/guests/default.toml:12`, or a document's address with its serial. */
export type PlaceOf = (path: Path) => string;

export type Layer = {
  /** `default`, `group NAME`, `vm NAME`. */
  readonly name: string;
  readonly source: 'file' | 'server';
  readonly values: ReadonlyMap<string, RawValue>;
  /** Null: what is inherited under this name is taken away. */
  readonly items: ReadonlyMap<string, RawItem | null>;
  readonly at: PlaceOf;
};

/** Names that every VM has a value for. */
export const BUILT_IN_VALUES = ['vm', 'group'] as const;

/** A parsed file or document as a layer. Throws GuestConfigError `usage/guest-config` naming the place and the nearest known key. */
export function layerOf(value: unknown, { name, source, at }: Pick<Layer, 'name' | 'source' | 'at'>): Layer {
  const found = checkTables(value);
  if (found !== null) throw misfitError(found, at);
  // The casts hold: the check has just passed, and each item is checked below before it is used.
  const { values = {}, items = {} } = value as Static<typeof LayerSchema>;
  const checked = Object.entries(items).map(([item, raw]) => [item, itemOf(raw, item, at)] as const);
  const named = new Map(Object.entries(values));
  for (const [key, given] of named) checkValue(key, given, { source, at });
  for (const [item, raw] of checked) if (raw !== null) checkContents(item, raw, { source, at });
  return { name, source, at, values: named, items: new Map(checked) };
}

function itemOf(raw: unknown, item: string, at: PlaceOf): RawItem | null {
  const isRemoval = typeof raw === 'object' && raw !== null && 'remove' in raw;
  const found = isRemoval ? checkRemoval(raw) : checkItem(raw);
  if (found !== null) throw misfitError({ ...found, path: ['items', item, ...found.path] }, at);
  // The cast holds: one of the two checks has just passed.
  return isRemoval ? null : (raw as RawItem);
}

function checkValue(key: string, value: RawValue, { source, at }: Pick<Layer, 'source' | 'at'>): void {
  const path = ['values', key];
  if (BUILT_IN_VALUES.some((name) => name === key)) throw faultAt(at, path, 'is a value that every VM has already');
  if (typeof value === 'object') checkSecret(value, path, { source, at });
  if (typeof value === 'string' && value.includes('${')) {
    throw faultAt(at, path, 'refers to another value; only items may do that');
  }
}

function checkContents(item: string, raw: RawItem, where: Pick<Layer, 'source' | 'at'>): void {
  const check = ({ content: given }: RawFile, path: Path) => {
    if (typeof given === 'object') checkSecret(given, [...path, 'content'], where);
  };
  if (raw.kind === 'file') check(raw, ['items', item]);
  if (raw.kind !== 'product') return;
  for (const [index, each] of raw.files.entries()) check(each, ['items', item, 'files', index]);
}

/** A secret stands in a file of its own on the host, and whoever signs documents gets none of the host's. */
function checkSecret(value: Secret, path: Path, { source, at }: Pick<Layer, 'source' | 'at'>): void {
  if (source === 'file' && 'secretText' in value) {
    throw faultAt(at, path, 'holds a secret itself; put it into the folder of secrets and name it here');
  }
  if (source === 'server' && 'secret' in value) {
    throw faultAt(at, path, 'names a secret of this host, which a document of the server may not have');
  }
}

function misfitError(found: Misfit, at: PlaceOf): GuestConfigError {
  return new GuestConfigError('usage/guest-config', `${at(found.path)}: ${misfitText(found)}`, {
    next: 'correct the file',
  });
}

/** "FILE:LINE: `items.motd.mode` must be …". */
export function faultAt(at: PlaceOf, path: Path, message: string): GuestConfigError {
  return misfitError({ path, message, nearest: null }, at);
}

/** The secrets that stand in a layer themselves: a document of the server brings them. */
export function secretTextsOf({ values, items }: Layer): readonly string[] {
  const contents = [...items.values()].flatMap((raw) =>
    raw?.kind === 'file' ? [raw.content] : raw?.kind === 'product' ? raw.files.map((each) => each.content) : [],
  );
  return [...values.values(), ...contents].flatMap((each) =>
    typeof each === 'object' && 'secretText' in each ? [each.secretText] : [],
  );
}
