// Reads short deb822 texts (Release, *.sources, control), whole. Package indexes have a reader of their own, packages-file.ts. deb822(5).
import { STANZA_LINE_CHARS_MAX } from '../../base/limits.ts';
import { VendorError } from '../errors.ts';

/** The fields of one stanza, by lower-case name; folded lines are joined with newlines. */
export type Stanza = ReadonlyMap<string, string>;

/** All stanzas of a short text. Throws VendorError on an overlong line. */
export function readStanzas(text: string, what: string): readonly Stanza[] {
  const stanzas: Map<string, string>[] = [];
  let fields = new Map<string, string>();
  let field: string | undefined;
  for (const line of text.split('\n')) {
    if (line.length > STANZA_LINE_CHARS_MAX) {
      throw new VendorError('vendor-ill/malformed', `${what}: a line is longer than ${STANZA_LINE_CHARS_MAX}`);
    }
    if (line.startsWith('#')) continue;
    if (line === '' || line === '\r') {
      if (fields.size > 0) stanzas.push(fields);
      fields = new Map();
      field = undefined;
      continue;
    }
    const first = line.charAt(0);
    if (first === ' ' || first === '\t') {
      if (field !== undefined) fields.set(field, `${fields.get(field) ?? ''}\n${line.trim()}`);
      continue;
    }
    const colon = line.indexOf(':');
    const name = line.slice(0, Math.max(colon, 0)).toLowerCase();
    field = name === '' ? undefined : name;
    if (field !== undefined) fields.set(field, line.slice(colon + 1).trim());
  }
  if (fields.size > 0) stanzas.push(fields);
  return stanzas;
}
