// Joliet: the same names in UTF-16 for guests without Rock Ridge. What it cannot carry is refused, never changed.
import { printable } from '../../base/printable.ts';
import { DriveError } from '../drive-error.ts';

/** UTF-16 units of a name: 64 in the specification, 103 in what Windows, Linux and mkisofs write and read. */
const NAME_UNITS_MAX = 103;
/** Characters Joliet forbids (Joliet specification, "Allowed character set"). */
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for.
const FORBIDDEN = /[\u0000-\u001f*:;?\\]/;

/** Throws DriveError `usage/drive-joliet` for a name that Joliet cannot carry. */
export function checkJolietName(name: string): void {
  const why = whyNotJoliet(name);
  if (why === null) return;
  throw new DriveError('usage/drive-joliet', `the drive name "${printable(name)}" ${why}, so Joliet cannot carry it`, {
    next: 'shorten or rename the file, or build the image without Joliet',
  });
}

function whyNotJoliet(name: string): string | null {
  if (name.length > NAME_UNITS_MAX) return `has more than ${NAME_UNITS_MAX} UTF-16 units`;
  if (FORBIDDEN.test(name)) return 'has one of the characters *:;?\\ or a control character';
  // Linux and Windows drop a dot at the end of a Joliet name.
  if (name.endsWith('.')) return 'ends with a dot';
  return null;
}
