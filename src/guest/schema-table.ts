// Writes a message's schema as a table of fields for the protocol page.
import type { TSchema } from 'typebox';

/** The parts of JSON Schema that our messages use. */
type Node = {
  readonly type?: string;
  readonly const?: unknown;
  readonly anyOf?: readonly Node[];
  readonly items?: Node;
  readonly properties?: Readonly<Record<string, Node>>;
  readonly required?: readonly string[];
  readonly pattern?: string;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly minimum?: number;
  readonly maximum?: number;
};

const PATTERN_NAMES: readonly (readonly [string, string])[] = [
  ['^[0-9a-f]{64}$', 'SHA-256, 64 lower-case hex digits'],
  ['^[0-9a-f]{32}$', '32 lower-case hex digits'],
  ['^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$', 'UUID in lower case'],
];

/** Markdown rows `| path | type | required |` of an object schema; nested objects and arrays follow their parent. */
export function schemaTable(schema: TSchema): string {
  // The cast holds: typebox schemas are JSON Schema.
  const rows = rowsOf(schema as Node, '');
  return ['| field | type | required |', '|---|---|---|', ...rows].join('\n');
}

function rowsOf(schema: Node, prefix: string): readonly string[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, field]) => {
    const path = `${prefix}${name}`;
    const isRequired = schema.required?.includes(name) ?? false;
    return [`| \`${path}\` | ${typeOf(field)} | ${isRequired ? 'yes' : 'no'} |`, ...nestedRows(field, path)];
  });
}

function nestedRows(field: Node, path: string): readonly string[] {
  if (field.properties !== undefined) return rowsOf(field, `${path}.`);
  if (field.items !== undefined) return nestedRows(field.items, `${path}[]`);
  // Alternatives that are objects are told apart by their literal field.
  return (field.anyOf ?? []).flatMap((option) => {
    const tag = Object.entries(option.properties ?? {}).find(([, node]) => node.const !== undefined);
    return rowsOf(option, tag === undefined ? `${path}.` : `${path}(${String(tag[1].const)}).`);
  });
}

function typeOf(field: Node): string {
  if (field.const !== undefined) return `\`${JSON.stringify(field.const)}\``;
  if (field.anyOf !== undefined) return field.anyOf.map(typeOf).join(' or ');
  switch (field.type) {
    case 'string':
      return textType(field);
    case 'integer':
      return `integer${range(field.minimum, field.maximum)}`;
    case 'array':
      return `array of ${typeOf(field.items ?? {})}${range(field.minItems, field.maxItems)}`;
    default:
      return field.type ?? 'any';
  }
}

function textType({ pattern, minLength, maxLength }: Node): string {
  const known = PATTERN_NAMES.find(([text]) => text === pattern)?.[1];
  if (known !== undefined) return known;
  const shape = pattern === undefined ? '' : `, matches \`${pattern.replaceAll('|', '\\|')}\``;
  return `text${range(minLength, maxLength, ' characters')}${shape}`;
}

function range(least: number | undefined, most: number | undefined, unit = ''): string {
  if (least === undefined && most === undefined) return '';
  if (most === undefined) return ` (${least} or more${unit})`;
  if (most === Number.MAX_SAFE_INTEGER) return ` (${least ?? 0} to 2^53-1)`;
  return ` (${least === undefined ? 'at most ' : `${least} to `}${most}${unit})`;
}
