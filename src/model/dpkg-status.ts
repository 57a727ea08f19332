// Reads dpkg's status file (deb-status as of dpkg 1.21): which Debian packages are installed, held, or half-way. Without Node: the
// guest agent reads its own with it, the host that of a switched-off disk, and both come to the same answer.
import { DPKG_STANZA_CHARS_MAX, NAME_CHARS_MAX } from '../base/limits.ts';
import type { InstalledProduct } from './inventory.ts';

export type DpkgStatusReader = {
  /** Feeds text, which may end anywhere; returns the packages that it completed. `overflow`: a stanza is endless. */
  readonly push: (text: string) => { readonly packages: readonly InstalledProduct[]; readonly overflow: boolean };
  /** The last package, which need not end with a blank line. */
  readonly end: () => readonly InstalledProduct[];
};

/** A reader of one status file, piece by piece. */
export function makeDpkgStatusReader(): DpkgStatusReader {
  let rest = '';
  return {
    push: (text) => {
      const joined = rest + text;
      // Up to the last complete stanza; the remainder waits for the next piece.
      const end = joined.lastIndexOf('\n\n');
      rest = end >= 0 ? joined.slice(end + 2) : joined;
      return {
        packages: end >= 0 ? readStanzas(joined.slice(0, end)) : [],
        overflow: rest.length > DPKG_STANZA_CHARS_MAX,
      };
    },
    end: () => {
      const last = readStanzas(rest);
      rest = '';
      return last;
    },
  };
}

function readStanzas(text: string): readonly InstalledProduct[] {
  return text
    .split('\n\n')
    .map(readStanza)
    .filter((product) => product !== null);
}

/** Status is three words (dpkg(1), PACKAGE STATES): what is wanted, whether something is wrong, and the state. */
function readStanza(stanza: string): InstalledProduct | null {
  const product = fieldOf(stanza, 'Package');
  const version = fieldOf(stanza, 'Version');
  const [selection, flag, state] = (fieldOf(stanza, 'Status') ?? '').split(' ');
  const isGone = state === undefined || state === 'not-installed' || state === 'config-files';
  if (isGone || !isName(product) || !isName(version)) return null;
  const arch = fieldOf(stanza, 'Architecture');
  const source = sourceOf(fieldOf(stanza, 'Source'), version);
  return {
    ecosystem: 'debian',
    product,
    version,
    ...(isName(arch) ? { arch } : {}),
    state: state === 'installed' && flag === 'ok' ? 'installed' : 'broken',
    ...(source === null ? {} : { source }),
    ...(selection === 'hold' ? { held: true } : {}),
  };
}

/** The value of a field of one line; undefined if the stanza has none. */
function fieldOf(stanza: string, name: string): string | undefined {
  const isFirst = stanza.startsWith(`${name}: `);
  const start = isFirst ? 0 : stanza.indexOf(`\n${name}: `) + 1;
  if (start === 0 && !isFirst) return undefined;
  const end = stanza.indexOf('\n', start);
  return stanza.slice(start + name.length + 2, end < 0 ? undefined : end).trim();
}

/** `Source: name (version)`, the version only where it differs; as `name version`. Null where it is the package itself. */
function sourceOf(source: string | undefined, version: string): string | null {
  if (source === undefined || source === '') return null;
  const open = source.indexOf(' (');
  const text =
    open < 0 ? `${source} ${version}` : `${source.slice(0, open)} ${source.slice(open + 2).replace(')', '')}`;
  return isName(text) ? text : null;
}

function isName(text: string | undefined): text is string {
  return text !== undefined && text !== '' && text.length <= NAME_CHARS_MAX;
}
