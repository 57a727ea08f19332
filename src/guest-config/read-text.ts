// Reads the text of a layer: TOML, YAML or JSON, as plain values with the line of each.
import { isNode, LineCounter, parseDocument } from 'yaml';
import { printable } from '../base/printable.ts';
import { parseToml } from '../base/toml-file.ts';
import { lineOfKey } from '../base/toml-lines.ts';
import { GuestConfigError } from './error.ts';
import type { Path } from './layer.ts';

/** Suffixes of the files that are read. */
export const SUFFIXES = ['.toml', '.yaml', '.yml', '.json'] as const;

export type ReadText = { readonly value: unknown; readonly lineOf: (path: Path) => number };

/** The values of a text by the suffix of its path. Throws GuestConfigError `usage/guest-config` with file and line. */
export function readText(text: string, path: string): ReadText {
  if (!path.endsWith('.toml')) return readYaml(text, path);
  const value = parseToml(text, path, GuestConfigError, 'usage/guest-config');
  return { value, lineOf: (key) => lineOfKey(text, key) };
}

/** YAML 1.2, of which JSON is a part. No aliases: they can make a small text a huge value. */
function readYaml(text: string, path: string): ReadText {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, version: '1.2', schema: 'core' });
  const [found] = [...document.errors, ...document.warnings];
  if (found !== undefined) throw notReadable(path, lines.linePos(found.pos[0]).line, found.message);
  const value = valuesOf(() => document.toJS({ maxAliasCount: 0 }), path);
  return {
    value: value ?? {},
    lineOf: (key) => {
      for (let length = key.length; length > 0; length -= 1) {
        const node: unknown = document.getIn(key.slice(0, length), true);
        if (isNode(node) && node.range !== undefined && node.range !== null) return lines.linePos(node.range[0]).line;
      }
      return 1;
    },
  };
}

function valuesOf(read: () => unknown, path: string): unknown {
  try {
    return read();
  } catch {
    throw notReadable(path, 1, 'aliases are not read; use a named value');
  }
}

function notReadable(path: string, line: number, problem: string): GuestConfigError {
  return new GuestConfigError('usage/guest-config', `${path}:${line}: ${printable(problem)}`, {
    next: 'correct the file',
  });
}
