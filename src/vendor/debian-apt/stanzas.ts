// Reads deb822 stanzas (Release, Packages, *.sources), as a stream and in bounded memory. deb822(5).
import { makeLineSplitter } from '../../base/json-lines.ts';
import { STANZA_LINE_CHARS_MAX } from '../../base/limits.ts';
import { VendorError } from '../errors.ts';

/** The wanted fields of one stanza, by lower-case name; folded lines are joined with newlines. */
export type Stanza = ReadonlyMap<string, string>;

export type StanzaReader = {
  /** Feeds text; returns the stanzas that it completed. Throws VendorError on an overlong line. */
  readonly push: (text: string) => readonly Stanza[];
  /** The last stanza, which need not end with a blank line. */
  readonly end: () => readonly Stanza[];
};

/** A reader that keeps only the wanted fields (lower case), or all of them. */
export function makeStanzaReader(what: string, wanted?: ReadonlySet<string>): StanzaReader {
  const splitter = makeLineSplitter(STANZA_LINE_CHARS_MAX);
  let fields = new Map<string, string>();
  let field: string | undefined;

  const readLine = (line: string): Stanza | undefined => {
    if (line === '' || line === '\r') {
      const done = fields;
      fields = new Map();
      field = undefined;
      return done.size === 0 ? undefined : done;
    }
    const first = line.charCodeAt(0);
    if (first === 32 || first === 9) {
      if (field !== undefined) fields.set(field, `${fields.get(field) ?? ''}\n${line.trim()}`);
      return undefined;
    }
    const colon = line.indexOf(':');
    const name = line.slice(0, Math.max(colon, 0)).toLowerCase();
    field = first !== 35 && name !== '' && (wanted === undefined || wanted.has(name)) ? name : undefined;
    if (field !== undefined) fields.set(field, line.slice(colon + 1).trim());
    return undefined;
  };

  const push = (text: string): readonly Stanza[] => {
    const { lines, overflow } = splitter.push(text);
    if (overflow)
      throw new VendorError('vendor-ill/malformed', `${what}: a line is longer than ${STANZA_LINE_CHARS_MAX}`);
    return lines.map(readLine).filter((stanza) => stanza !== undefined);
  };
  return { push, end: () => push('\n\n') };
}

/** All stanzas of a short text. */
export function readStanzas(text: string, what: string): readonly Stanza[] {
  const reader = makeStanzaReader(what);
  return [...reader.push(text), ...reader.end()];
}
