// Names of the bare standard, for readers that know neither Rock Ridge nor Joliet: 8.3, unique in their folder.
import { assert } from '../../base/errors.ts';

const STEM_CHARS = 8;
const EXTENSION_CHARS = 3;

/** A function that gives each name of one folder its own ISO name (ECMA-119, 7.5 and 7.6), in time linear in the names. */
export function makeIsoNamer(): (name: string, isFolder: boolean) => string {
  const taken = new Set<string>();
  // One counter for the folder: no number is tried twice, whatever the names are.
  let counter = 0;
  return (name, isFolder) => {
    const dot = isFolder ? -1 : name.lastIndexOf('.');
    const stem = clean(dot > 0 ? name.slice(0, dot) : name, STEM_CHARS) || '_';
    const ending = isFolder ? '' : `.${dot > 0 ? clean(name.slice(dot + 1), EXTENSION_CHARS) : ''};1`;
    let candidate = stem + ending;
    while (taken.has(candidate)) {
      const suffix = counter.toString(36).toUpperCase();
      assert(suffix.length <= STEM_CHARS, 'a folder has fewer names than the ISO counter has numbers');
      candidate = stem.slice(0, STEM_CHARS - suffix.length) + suffix + ending;
      counter += 1;
    }
    taken.add(candidate);
    return candidate;
  };
}

function clean(text: string, charsMax: number): string {
  return text
    .slice(0, charsMax)
    .toUpperCase()
    .replace(/[^A-Z0-9_]/g, '_')
    .slice(0, charsMax);
}
