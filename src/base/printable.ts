// Makes text from guests and vendors fit to show. Without Node: the guest agent uses it too.

// Control and invisible format characters (direction overrides among them) can forge what a terminal shows.
const UNPRINTABLE = /(?!\n)[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

/** The text without control and direction characters, cut to `charsMax` with an ellipsis; tabs and newlines become spaces. */
export function printable(text: string, charsMax = 200): string {
  const clean = text.replace(/[\t\n]+/g, ' ').replace(UNPRINTABLE, '');
  return clean.length <= charsMax ? clean : `${clean.slice(0, charsMax - 1)}…`;
}

/** Like printable, but keeps newlines: for blocks of output. */
export function printableBlock(text: string, charsMax: number): string {
  const clean = text.replace(/\t/g, ' ').replace(UNPRINTABLE, '');
  return clean.length <= charsMax ? clean : `…${clean.slice(clean.length - charsMax + 1)}`;
}

/** `1 update`, `2 updates`. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}
