// What a matrix of tests found, as a table below the file's line in the output of `npm test`: what was done to what, and what came of it.
import type { TestContext } from 'node:test';

/** Columns by their headings, in order; every row has all of them. */
export type ResultRow<Heading extends string> = Readonly<Record<Heading, string>>;

/** The rows below their headings, each column as wide as its widest word. */
export function drawTable<Heading extends string>(
  headings: readonly Heading[],
  rows: readonly ResultRow<Heading>[],
): string {
  const lines = [headings, ...rows.map((row) => headings.map((heading) => row[heading]))];
  const widths = headings.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  const draw = (line: readonly string[]) => line.map((word, column) => word.padEnd(widths[column] ?? 0)).join('  ');
  const rule = widths.map((width) => '-'.repeat(width)).join('  ');
  return [draw(lines[0] ?? []), rule, ...lines.slice(1).map(draw)].map((line) => line.trimEnd()).join('\n');
}

/** Prints what was tried, of how much, and the table. The runner shows it for tests that pass too. */
export function printTable<Heading extends string>(
  t: TestContext,
  title: string,
  headings: readonly Heading[],
  rows: readonly ResultRow<Heading>[],
): void {
  t.diagnostic(`${title}\n${drawTable(headings, rows)}`);
}
