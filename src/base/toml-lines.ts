// Finds the line on which a key of a TOML document stands; the parser gives values without positions.

type Path = readonly (string | number)[];

/**
 * The 1-based line of the key at `path`, or of its nearest ancestor that has a line of its own (inline tables, list
 * entries); 1 when nothing matches. The text must already have been parsed as valid TOML.
 */
export function lineOfKey(text: string, path: Path): number {
  const wanted = path.map(String);
  const lines = keyLines(text);
  for (let length = wanted.length; length > 0; length -= 1) {
    const prefix = wanted.slice(0, length).join('\u0000');
    const found = lines.find(({ key }) => key === prefix || key.startsWith(`${prefix}\u0000`));
    if (found !== undefined) return found.line;
  }
  return 1;
}

/** Every line that opens a table or sets a key, with the full path it names. */
function keyLines(text: string): readonly { readonly key: string; readonly line: number }[] {
  const result: { key: string; line: number }[] = [];
  const arrayCounts = new Map<string, number>();
  let table: readonly string[] = [];
  let openValue = '';
  for (const [index, raw] of text.split('\n').entries()) {
    if (openValue !== '') {
      openValue = unfinishedValue(`${openValue}\n${raw}`);
      continue;
    }
    const header = /^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(#.*)?$/.exec(raw);
    if (header !== null) {
      table = tablePath(splitKey(header[2] ?? ''), header[1] === '[[', arrayCounts);
      result.push({ key: table.join('\u0000'), line: index + 1 });
      continue;
    }
    const assignment =
      /^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=(.*)$/.exec(raw);
    if (assignment === null) continue;
    result.push({ key: [...table, ...splitKey(assignment[1] ?? '')].join('\u0000'), line: index + 1 });
    openValue = unfinishedValue(assignment[2] ?? '');
  }
  return result;
}

/** A header's path with the indices of the arrays of tables it goes through. */
function tablePath(keys: readonly string[], opensEntry: boolean, arrayCounts: Map<string, number>): readonly string[] {
  const path: string[] = [];
  for (const [position, key] of keys.entries()) {
    path.push(key);
    const name = path.join('\u0000');
    const isLast = position === keys.length - 1;
    if (isLast && opensEntry) arrayCounts.set(name, (arrayCounts.get(name) ?? 0) + 1);
    const count = arrayCounts.get(name);
    if (count !== undefined) path.push(String(count - 1));
  }
  return path;
}

function splitKey(text: string): readonly string[] {
  return [...text.matchAll(/"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)/g)].map(
    (found) => found[1] ?? found[2] ?? found[3] ?? '',
  );
}

/** The value's text while it goes on in the next line (a list, a multi-line string), otherwise the empty string. */
function unfinishedValue(text: string): string {
  let rest = text;
  let depth = 0;
  while (rest !== '') {
    const token = /^("""|'''|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*|[[\]{}]|[^"'#[\]{}]+|["'])/.exec(rest)?.[0] ?? rest;
    rest = rest.slice(token.length);
    if (token === '"""' || token === "'''") {
      const end = rest.indexOf(token);
      if (end < 0) return text;
      rest = rest.slice(end + 3);
    }
    if (token === '[' || token === '{') depth += 1;
    if (token === ']' || token === '}') depth -= 1;
  }
  return depth > 0 ? text : '';
}
