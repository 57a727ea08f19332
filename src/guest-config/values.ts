// Puts named values into texts: `${name}`, and `$${` for a `${` of the text's own. There is no more to this language.
import { CONFIG_FILE_CHARS_MAX } from '../base/limits.ts';
import { nearestWord } from '../base/nearest-word.ts';
import { printable } from '../base/printable.ts';
import { BLANKED, type ConfigOrigin } from '../model/guest-config.ts';

/** A value as it is put in, and where it comes from. */
export type NamedValue = {
  readonly text: string;
  readonly isSecret: boolean;
  readonly origin: ConfigOrigin;
};

/** A text with its values, once as it is and once for people. */
export type FilledText = {
  readonly clear: string;
  /** With `(secret)` in the place of each secret. */
  readonly shown: string;
  /** Names of the values that went in. */
  readonly used: readonly string[];
  readonly hasSecret: boolean;
};

const PLACE = /\$(\$\{)|\$\{([^}\n]*)\}?/g;

/** Fills a text of at most so many characters in the end, or says in a sentence's end what is wrong: "names `${dmain}`, which is no known value; …". */
export function fillText(
  text: string,
  values: ReadonlyMap<string, NamedValue>,
  charsMax = CONFIG_FILE_CHARS_MAX,
): FilledText | { readonly fault: string } {
  if (!text.includes('${')) return { clear: text, shown: text, used: [], hasSecret: false };
  const used = new Set<string>();
  let clear = '';
  let shown = '';
  let hasSecret = false;
  let done = 0;
  for (const match of text.matchAll(PLACE)) {
    const before = text.slice(done, match.index);
    done = match.index + match[0].length;
    const name = match[2];
    if (name === undefined) {
      clear += `${before}\${`;
      shown += `${before}\${`;
      continue;
    }
    const value = match[0].endsWith('}') ? values.get(name) : undefined;
    if (value === undefined) return { fault: unknownName(match[0], name, [...values.keys()]) };
    used.add(name);
    hasSecret ||= value.isSecret;
    clear += before + value.text;
    shown += before + (value.isSecret ? BLANKED : value.text);
    // A value that stands in a text ten thousand times makes a huge one of two small ones.
    if (clear.length > charsMax) return { fault: 'is too long once its values are put in' };
  }
  const rest = text.slice(done);
  return { clear: clear + rest, shown: shown + rest, used: [...used], hasSecret };
}

/** Names in a text that stand for values. */
export function namesIn(text: string): readonly string[] {
  return [...text.matchAll(PLACE)].flatMap(([whole, , name]) =>
    name === undefined || !whole.endsWith('}') ? [] : [name],
  );
}

function unknownName(place: string, name: string, known: readonly string[]): string {
  const nearest = nearestWord(name, known);
  const hint = nearest === null ? 'write $${ for a ${ of the text itself' : `the nearest known value is \`${nearest}\``;
  return `names \`${printable(place, 80)}\`, which is no known value; ${hint}`;
}
