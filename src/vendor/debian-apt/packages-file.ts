// What a package index (Packages, Packages.xz, Packages.gz) says: where each stanza stands in it, and the package a stanza describes.
import { type Digest, isDigest } from '../../base/digest.ts';
import { ARTIFACT_BYTES_MAX, NAME_CHARS_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import { isDebianVersion } from './version.ts';

export type OfferedPackage = {
  readonly suite: string;
  readonly component: string;
  readonly name: string;
  readonly version: string;
  readonly arch: string;
  /** Source package and its version, `name version`; empty where both are the package's own. */
  readonly source: string;
  readonly sizeBytes: number;
  /** Path below the archive's root. */
  readonly filename: string;
  readonly digest: Digest;
  /** Pre-Depends and Depends. */
  readonly depends: string;
  /** Breaks and Conflicts. */
  readonly breaks: string;
  readonly replaces: string;
  readonly provides: string;
  readonly summary: string;
};

/** The fields we read, by their names in lower case; the places in the array below. */
const FIELDS = [
  'package',
  'version',
  'architecture',
  'source',
  'size',
  'filename',
  'sha256',
  'pre-depends',
  'depends',
  'breaks',
  'conflicts',
  'replaces',
  'provides',
  'description',
] as const;
type Field = (typeof FIELDS)[number];
type Stanza = { [field in Field]?: string };
const WANTED: ReadonlySet<string> = new Set(FIELDS);

/** Plain characters only and no climbing: the path becomes part of a URL and of a file name. */
const FILENAME = /^(?!.*(?:^|\/)\.\.?(?:\/|$))[A-Za-z0-9._+~:%@-][A-Za-z0-9._+~:%@/-]*$/;

const SUMMARY_CHARS_MAX = 200;

function joined(first: string | undefined, second: string | undefined): string {
  if (first === undefined || first === '') return second ?? '';
  return second === undefined || second === '' ? first : `${first}, ${second}`;
}

/** The stanza was read byte by byte; nearly all summaries are plain ASCII and need no second look. */
function summaryOf(bytes: string): string {
  if (bytes.length <= SUMMARY_CHARS_MAX && /^[ -~]*$/.test(bytes)) return bytes;
  return printable(Buffer.from(bytes, 'latin1').toString('utf8'), SUMMARY_CHARS_MAX);
}

/** `Source: name (version)`, the version only where it differs, the field only where either does. */
function sourceOf(field: string | undefined, version: string): string {
  if (field === undefined || field === '' || field.length > NAME_CHARS_MAX) return '';
  const open = field.indexOf(' (');
  return open < 0 ? `${field} ${version}` : `${field.slice(0, open)} ${field.slice(open + 2).replace(')', '')}`;
}

/** Turns one stanza into a package; a malformed one means the signed index itself is broken. Throws VendorError. */
function packageFromStanza(stanza: Stanza, suite: string, component: string): OfferedPackage {
  const [name, version, arch] = [stanza.package, stanza.version, stanza.architecture];
  const [filename, digest, sizeBytes] = [stanza.filename, stanza.sha256, Number(stanza.size)];
  const isShort = (text: string | undefined): text is string =>
    text !== undefined && text !== '' && text.length <= NAME_CHARS_MAX;
  const isSized = Number.isSafeInteger(sizeBytes) && sizeBytes > 0 && sizeBytes <= ARTIFACT_BYTES_MAX;
  const isWell = isShort(name) && isShort(version) && isShort(arch) && isSized && isDebianVersion(version);
  const isLocated = filename !== undefined && filename.length <= 1024 && FILENAME.test(filename);
  if (!isWell || !isLocated || digest === undefined || !isDigest(digest)) {
    const what = printable(`${name ?? 'without a name'} ${version ?? ''}`);
    throw new VendorError('vendor-ill/malformed', `the index of ${suite} describes the package ${what} wrongly`);
  }
  return {
    suite,
    component,
    name,
    version,
    arch,
    source: sourceOf(stanza.source, version),
    sizeBytes,
    filename,
    digest,
    depends: joined(stanza['pre-depends'], stanza.depends),
    breaks: joined(stanza.breaks, stanza.conflicts),
    replaces: joined(stanza.replaces, undefined),
    provides: joined(stanza.provides, undefined),
    summary: summaryOf(stanza.description ?? ''),
  };
}

const NEWLINE = 10;
const SPACE = 32;
const TAB = 9;
const COLON = 58;

/** The characters with which a line of interest begins; most lines of a stanza need no closer look. */
const INITIALS = new Uint8Array(128);
for (const character of [' ', '\t', ...FIELDS.flatMap(([initial = '']) => [initial, initial.toUpperCase()])]) {
  INITIALS[character.charCodeAt(0)] = 1;
}

/** Which field a line begins with. Unknown names are remembered too: there are a dozen of them in every stanza. */
function makeFieldNames(): (name: string) => Field | null {
  const known = new Map<string, Field | null>();
  return (name) => {
    const found = known.get(name);
    if (found !== undefined) return found;
    const lower = name.toLowerCase();
    // The cast holds: what is in WANTED is a Field.
    const field = WANTED.has(lower) ? (lower as Field) : null;
    if (known.size < FIELD_NAMES_REMEMBERED_MAX) known.set(name, field);
    return field;
  };
}

const FIELD_NAMES_REMEMBERED_MAX = 1000;

/**
 * The wanted fields of one stanza, deb822(5): folded lines joined by spaces, of Description only the first. A list of all offers
 * reads 1.5 million lines, so it looks for line ends and colons and makes no list of lines.
 */
function readStanza(text: string, start: number, end: number, fieldOf: (name: string) => Field | null): Stanza {
  const stanza: Stanza = {};
  let field: Field | null = null;
  for (let at = start; at < end; ) {
    const newline = text.indexOf('\n', at);
    const lineEnd = newline < 0 || newline > end ? end : newline;
    const first = text.charCodeAt(at);
    if (first < 128 && INITIALS[first] === 0) {
      field = null;
    } else if (first === SPACE || first === TAB) {
      if (field !== null && field !== 'description')
        stanza[field] = `${stanza[field]} ${text.slice(at, lineEnd).trim()}`;
    } else {
      let colon = at;
      while (colon < lineEnd && text.charCodeAt(colon) !== COLON) colon += 1;
      field = fieldOf(text.slice(at, colon));
      if (field !== null) stanza[field] = text.slice(colon + 1, lineEnd).trim();
    }
    at = lineEnd + 1;
  }
  return stanza;
}

const fieldOf = makeFieldNames();

/**
 * The package of one stanza as it stands in the index. Bytes are read as characters: every separator is ASCII, and text
 * outside it stands only where it is decoded later. Throws VendorError `vendor-ill/malformed`.
 */
export function readPackage(stanza: Buffer, suite: string, component: string): OfferedPackage {
  const text = stanza.toString('latin1');
  return packageFromStanza(readStanza(text, 0, text.length, fieldOf), suite, component);
}

/** Where a stanza stands in the text it was found in, and what packages are looked up by. */
export type StanzaPlace = {
  readonly name: string;
  readonly provides: string;
  readonly start: number;
  readonly length: number;
};

/** The end of a stanza, or a line that begins the field by which packages are looked up beside their name. */
const MARK = /\n(?:\n|[Pp][Rr][Oo][Vv][Ii][Dd][Ee][Ss]:)/g;
const NAME_FIRST = 'Package: ';

/** A field's value from behind its colon on, folded lines joined by spaces as everywhere. */
function valueAt(text: string, at: number, end: number): string {
  let value = '';
  for (let lineStart = at; ; ) {
    const newline = text.indexOf('\n', lineStart);
    const lineEnd = newline < 0 || newline > end ? end : newline;
    value = lineStart === at ? text.slice(at, lineEnd).trim() : `${value} ${text.slice(lineStart, lineEnd).trim()}`;
    const next = text.charCodeAt(lineEnd + 1);
    if (lineEnd >= end || (next !== SPACE && next !== TAB)) return value;
    lineStart = lineEnd + 1;
  }
}

/** Nearly every stanza begins with its name; for one that does not, all its lines are looked at. */
function placeOf(text: string, start: number, end: number, providesAt: number): Omit<StanzaPlace, 'start' | 'length'> {
  if (text.startsWith(NAME_FIRST, start)) {
    const provides = providesAt < 0 ? '' : valueAt(text, providesAt, end);
    return { name: valueAt(text, start + NAME_FIRST.length, end), provides };
  }
  const { package: name = '', provides = '' } = readStanza(text, start, end, fieldOf);
  return { name, provides };
}

/**
 * The stanzas that end within the text, and how much of it they take; with `isLast`, also one that ends with the text.
 * It is the inner loop of an import (50 MB, 1.5 million lines): what a stanza says beside its name is read when it is
 * asked for, and so is whether it is well formed. Throws VendorError for a stanza without a name.
 */
export function findStanzas(
  text: string,
  isLast: boolean,
  what: string,
): { readonly places: readonly StanzaPlace[]; readonly used: number } {
  const places: StanzaPlace[] = [];
  let start = 0;
  for (;;) {
    while (text.charCodeAt(start) === NEWLINE) start += 1;
    let end = -1;
    let providesAt = -1;
    MARK.lastIndex = start;
    while (end < 0 && MARK.test(text)) {
      if (text.charCodeAt(MARK.lastIndex - 1) === NEWLINE) end = MARK.lastIndex - 2;
      else providesAt = MARK.lastIndex;
    }
    if (end < 0 && isLast && text.slice(start).trim() !== '') end = text.length;
    if (end < 0) return { places, used: start };
    const { name, provides } = placeOf(text, start, end, providesAt);
    if (name === '' || name.length > NAME_CHARS_MAX) {
      throw new VendorError('vendor-ill/malformed', `${what} describes a package without a name`);
    }
    places.push({ name, provides, start, length: end - start });
    start = Math.min(end + 2, text.length);
  }
}
