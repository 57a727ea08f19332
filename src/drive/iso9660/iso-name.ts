// Names of the bare standard, for readers that know neither Rock Ridge nor Joliet: 8.3, unique in their folder.
import { assert } from '../../base/errors.ts';

const STEM_CHARS = 8;
const EXTENSION_CHARS = 3;

/**
 * A function that gives each name of one folder its own ISO name, without a version (ECMA-119, 7.5 and 7.6), in time linear in
 * the names. Their plain order is that of ECMA-119, 9.3: the dot and a name's end come before every character of a name.
 */
export function makeIsoNamer(): (name: string, isFolder: boolean) => string {
  const taken = new Set<string>();
  // One counter for the folder: no number is tried twice, whatever the names are.
  let counter = 0;
  return (name, isFolder) => {
    const dot = isFolder ? -1 : name.lastIndexOf('.');
    const stem = clean(dot > 0 ? name.slice(0, dot) : name, STEM_CHARS) || '_';
    const extension = dot > 0 ? `.${clean(name.slice(dot + 1), EXTENSION_CHARS)}` : '.';
    // A reader that drops the dot of an empty extension must not see a file and a folder by one name.
    const ending = extension === '.' ? '' : extension;
    let candidate = stem + ending;
    while (taken.has(candidate)) {
      const suffix = counter.toString(36).toUpperCase();
      assert(suffix.length <= STEM_CHARS, 'a folder has fewer names than the ISO counter has numbers');
      candidate = stem.slice(0, STEM_CHARS - suffix.length) + suffix + ending;
      counter += 1;
    }
    taken.add(candidate);
    return ending === '' && !isFolder ? `${candidate}.` : candidate;
  };
}

function clean(text: string, charsMax: number): string {
  return text
    .slice(0, charsMax)
    .toUpperCase()
    .replace(/[^A-Z0-9_]/g, '_')
    .slice(0, charsMax);
}
