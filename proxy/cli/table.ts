// Tables that fit the terminal. Every cell is made printable: its text may come from a guest or a vendor.
import { printable } from '../../src/base/printable.ts';

export type Column = {
  readonly title: string;
  /** Set for numbers. */
  readonly alignRight?: boolean;
};
export type Cell = string | { readonly text: string; readonly paint: (text: string) => string };

const GAP = '  ';
/** A column is not made narrower than this, even if the table does not fit then. */
const COLUMN_CHARS_MIN = 8;
const CELL_CHARS_MAX = 500;

/** The table as text without a final newline. `columns` null: as wide as it is. An empty table is its `ifEmpty` text. */
export function renderTable(
  head: readonly Column[],
  rows: readonly (readonly Cell[])[],
  options: { readonly columns: number | null; readonly ifEmpty: string },
): string {
  if (rows.length === 0) return options.ifEmpty;
  const texts = [head.map(({ title }) => title), ...rows.map((row) => row.map(cellText))];
  const widths = head.map((_, index) => Math.max(...texts.map((row) => textWidth(row[index] ?? ''))));
  const fitted = options.columns === null ? widths : fitWidths(widths, options.columns);
  return texts
    .map((row, line) =>
      row
        .map((text, index) => {
          const padded = padTo(text, fitted[index] ?? 0, head[index]?.alignRight === true);
          const cell = line === 0 ? undefined : rows[line - 1]?.[index];
          return typeof cell === 'object' ? cell.paint(padded) : padded;
        })
        .join(GAP)
        .trimEnd(),
    )
    .join('\n');
}

function cellText(cell: Cell): string {
  return printable(typeof cell === 'string' ? cell : cell.text, CELL_CHARS_MAX);
}

/** Takes from the widest column, one character after the other, until the line fits. */
function fitWidths(widths: readonly number[], columns: number): readonly number[] {
  const fitted = [...widths];
  const room = columns - GAP.length * (widths.length - 1);
  while (fitted.reduce((sum, width) => sum + width, 0) > room) {
    const widest = fitted.indexOf(Math.max(...fitted));
    if ((fitted[widest] ?? 0) <= COLUMN_CHARS_MIN) return fitted;
    fitted[widest] = (fitted[widest] ?? 0) - 1;
  }
  return fitted;
}

function padTo(text: string, width: number, alignRight: boolean): string {
  const cut = cutTo(text, width);
  const padding = ' '.repeat(Math.max(0, width - textWidth(cut)));
  return alignRight ? padding + cut : cut + padding;
}

/** The text cut to so many columns of a terminal, with an ellipsis if anything was cut. */
export function cutTo(text: string, width: number): string {
  if (textWidth(text) <= width) return text;
  let cut = '';
  let used = 0;
  for (const char of text) {
    used += charWidth(char);
    if (used > width - 1) break;
    cut += char;
  }
  return `${cut}…`;
}

/** Columns that a text takes on a terminal. */
export function textWidth(text: string): number {
  let width = 0;
  for (const char of text) width += charWidth(char);
  return width;
}

const WIDE =
  /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation}/u;

function charWidth(char: string): number {
  if (/\p{M}/u.test(char)) return 0;
  return WIDE.test(char) ? 2 : 1;
}
