// Comma-separated values (RFC 4180) whose texts may come from guests, vendors and license servers.
import { printable } from '../../src/base/printable.ts';

/** Head line and rows. A cell that a spreadsheet would run as a formula gets an apostrophe before it. */
export function csvText(head: readonly string[], rows: readonly (readonly string[])[]): string {
  return [head, ...rows].map((row) => row.map(csvCell).join(',')).join('\r\n');
}

function csvCell(value: string): string {
  const clean = printable(value, 1_000);
  const harmless = /^[=+\-@]/.test(clean) ? `'${clean}` : clean;
  return /[",]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
}
