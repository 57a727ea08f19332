// Reads /var/lib/dpkg/status (deb-status as of dpkg 1.21): which Debian packages are installed, held, or half-way.
import { DPKG_STATUS_BYTES_MAX, INVENTORY_PRODUCTS_MAX, NAME_CHARS_MAX } from '../src/base/limits.ts';
import type { InstalledProduct } from '../src/model/inventory.ts';
import { AgentError, type Platform } from './platform/platform.ts';

const PIECE_BYTES = 65_536;
const NEWLINE = 10;

/** The packages of a status file; empty if there is none. Reads in pieces: the file may be megabytes, the agent is small. */
export function readDpkgStatus(platform: Platform, path: string): readonly InstalledProduct[] {
  if (platform.files.stat(path) === null) return [];
  const products: InstalledProduct[] = [];
  const addStanzas = (text: string): void => {
    for (const stanza of text.split('\n\n')) {
      const product = parseStanza(stanza);
      if (product !== null) products.push(product);
    }
    if (products.length > INVENTORY_PRODUCTS_MAX) throw new AgentError('too-large', `${path} names too many packages`);
  };
  let rest = '';
  eachPiece(platform, path, (text) => {
    const joined = rest + text;
    // Up to the last complete stanza; the remainder waits for the next piece.
    const end = joined.lastIndexOf('\n\n');
    if (end >= 0) addStanzas(joined.slice(0, end));
    rest = end >= 0 ? joined.slice(end + 2) : joined;
    if (rest.length > 4 * PIECE_BYTES) throw new AgentError('too-large', `${path} has an endless stanza`);
  });
  addStanzas(rest);
  return products;
}

/** Text of a file in pieces that end at a line's end, so that no character is cut. */
function eachPiece(platform: Platform, path: string, use: (text: string) => void): void {
  const file = platform.files.open(path);
  try {
    const buffer = new Uint8Array(PIECE_BYTES);
    let kept = 0;
    let total = 0;
    for (let count = file.read(buffer); count > 0; count = file.read(buffer.subarray(kept))) {
      total += count;
      if (total > DPKG_STATUS_BYTES_MAX) throw new AgentError('too-large', `${path} is over its limit`);
      const filled = kept + count;
      const newline = buffer.lastIndexOf(NEWLINE, filled - 1);
      const end = newline < 0 && filled === buffer.length ? filled : newline + 1;
      use(platform.decode(buffer.subarray(0, end)));
      buffer.copyWithin(0, end, filled);
      kept = filled - end;
    }
    use(platform.decode(buffer.subarray(0, kept)));
  } finally {
    file.close();
  }
}

/** The value of a field of one line; undefined if the stanza has none. */
function fieldOf(stanza: string, name: string): string | undefined {
  const isFirst = stanza.startsWith(`${name}: `);
  const start = isFirst ? 0 : stanza.indexOf(`\n${name}: `) + 1;
  if (start === 0 && !isFirst) return undefined;
  const end = stanza.indexOf('\n', start);
  return stanza.slice(start + name.length + 2, end < 0 ? undefined : end).trim();
}

/** Status is three words (dpkg(1), PACKAGE STATES): what is wanted, whether something is wrong, and the state. */
function parseStanza(stanza: string): InstalledProduct | null {
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
