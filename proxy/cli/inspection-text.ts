// What a disk tells, as text for people. Pure; every foreign text goes through printable.

import { printable } from '../../src/base/printable.ts';
import { differenceText } from '../../src/inspect/difference.ts';
import type { Inspection } from '../service.ts';
import type { Output } from './output.ts';
import { renderTable } from './table.ts';
import { sizeText } from './text.ts';
import { SOURCES } from './vm-text.ts';

/** Products shown; `--json` has all of them. */
const PRODUCTS_SHOWN_MAX = 40;

/** The page of `vm inspect`. */
export function inspectionText(inspection: Inspection, output: Output): string {
  const { inventory, lastRun, difference, partition, table } = inspection;
  const { os, agent, products, lastShutdown } = inventory;
  const place = partition === null ? 'no partition table' : `partition ${partition} (${table})`;
  const run =
    lastRun === null
      ? '-'
      : `${lastRun.run}, ${lastRun.isFinished ? 'finished' : 'broken off'}, ${lastRun.failed} failed`;
  const facts: readonly (readonly [string, string])[] = [
    ['disk', `${inspection.disk} (${inspection.format}, ${sizeText(inspection.sizeBytes)})`],
    ['system on', `${place}, ${inspection.filesystem}`],
    ['os', `${os.id} ${os.versionId} ${os.arch}`],
    ['agent', agent.version],
    ['last run', run],
    ['last shutdown', lastShutdown === null ? 'not recorded' : `recorded, ${lastShutdown.products.length} products`],
    ['free', sizeText(inventory.freeBytes)],
    ['what counts', SOURCES[inspection.counts]],
    ...inspection.notes.map((note) => ['note', note] as const),
    ...(difference === null ? [] : [['difference', differenceText(difference)] as const]),
  ];
  const lines = facts.map(([name, value]) => `${name.padEnd(14)} ${printable(value, 1_000)}`);
  const shown = products.slice(0, PRODUCTS_SHOWN_MAX);
  const rows = shown.map(({ product, arch, version, ecosystem, state, held }) => [
    arch === undefined ? product : `${product}:${arch}`,
    version,
    ecosystem,
    held === true ? `${state}, held` : state,
  ]);
  const head = ['PRODUCT', 'VERSION', 'ECOSYSTEM', 'STATE'].map((title) => ({ title }));
  const list = renderTable(head, rows, { columns: output.columns, ifEmpty: 'The disk names no products.' });
  const more = products.length - shown.length;
  return [...lines, '', list, ...(more > 0 ? [`… and ${more} more; --json shows all`] : [])].join('\n');
}
