// pratique drift: what is installed against what is the latest.
import { type Command, Option } from 'commander';
import { EXIT_DRIFT } from '../../src/base/errors.ts';
import type { DriftRow } from '../service.ts';
import { type Build, completeCommand } from './context.ts';
import { csvText } from './csv.ts';
import { renderTable } from './table.ts';
import { durationText } from './text.ts';

type DriftOptions = { readonly failOn?: 'security' | 'any'; readonly csv?: boolean };

/** Adds `pratique drift`. */
export function addDriftCommand(program: Command, build: Build): void {
  const command = program
    .command('drift')
    .description('installed against latest, per VM')
    .addOption(new Option('--fail-on <kinds>', 'exit code 8 when there is such drift').choices(['security', 'any']))
    .option('--csv', 'as comma-separated values (RFC 4180)');
  completeCommand<DriftOptions>(
    command,
    build,
    'pratique drift --fail-on security',
    async ({ output, connect, clock }, _args, options) => {
      const drift = await (await connect()).drift();
      const head = ['VM', 'PRODUCT', 'INSTALLED', 'LATEST', 'KIND', 'SINCE', 'ADVISORIES', 'REMARK'].map((title) => ({
        title,
      }));
      const rows = drift.map((row) => [
        row.vm,
        row.product,
        row.installed === null ? '-' : `${row.installed}${row.source === 'disk' ? ' (by its disk)' : ''}`,
        row.latest,
        { text: row.kind, paint: (text: string) => (row.kind === 'security' ? output.paint('red', text) : text) },
        durationText(clock.nowMs() - row.sinceMs),
        row.advisories.join(' '),
        row.remark ?? '',
      ]);
      output.show({ drift }, () =>
        options.csv === true
          ? driftCsv(drift)
          : renderTable(head, rows, {
              columns: output.columns,
              ifEmpty: 'No drift: every known product is at its latest version.',
            }),
      );
      return hasDrift(drift, options.failOn) ? EXIT_DRIFT : undefined;
    },
  );
}

function hasDrift(drift: readonly DriftRow[], failOn: DriftOptions['failOn']): boolean {
  if (failOn === undefined) return false;
  return drift.some(({ kind }) => failOn === 'any' || kind === 'security');
}

/** The rows as CSV with a head line. */
export function driftCsv(drift: readonly DriftRow[]): string {
  const head = [
    'vm',
    'ecosystem',
    'product',
    'installed',
    'latest',
    'kind',
    'since_ms',
    'advisories',
    'source',
    'remark',
  ];
  const rows = drift.map((row) => [
    row.vm,
    row.ecosystem,
    row.product,
    row.installed ?? '',
    row.latest,
    row.kind,
    String(row.sinceMs),
    row.advisories.join(' '),
    row.source,
    row.remark ?? '',
  ]);
  return csvText(head, rows);
}
