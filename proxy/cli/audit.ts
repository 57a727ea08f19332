// pratique audit …: the chain of records.
import type { Command } from 'commander';
import { isoTime } from '../../src/base/clock.ts';
import { EXIT_FAILED } from '../../src/base/errors.ts';
import { printable } from '../../src/base/printable.ts';
import type { AuditEntry } from '../service.ts';
import { type Build, completeCommand } from './context.ts';
import { safeJson } from './output.ts';
import { wholeNumber } from './text.ts';

type ShowOptions = { readonly vm?: string; readonly after: string; readonly limit: string };

const PAGE_RECORDS = 1_000;

/** Adds `pratique audit` and its verbs. */
export function addAuditCommands(program: Command, build: Build): void {
  const audit = program.command('audit').description('the signed, chained records of every decision');
  const show = audit
    .command('show')
    .description('the records, oldest first; with --json one a line')
    .option('--vm <vm>', 'only records of this VM')
    .option('--after <seq>', 'only records with a greater number', '0')
    .option('--limit <n>', 'at most so many', '2000');
  completeCommand<ShowOptions>(
    show,
    build,
    'pratique audit show --vm web',
    async ({ output, connect }, _args, options) => {
      const service = await connect();
      let afterSeq = wholeNumber('--after', options.after);
      let left = wholeNumber('--limit', options.limit);
      while (left > 0) {
        const limit = Math.min(left, PAGE_RECORDS);
        const page = await service.auditEntries({
          afterSeq,
          limit,
          ...(options.vm === undefined ? {} : { vm: options.vm }),
        });
        for (const entry of page) output.show(entry, () => entryText(entry));
        if (page.length === 0) return undefined;
        left -= page.length;
        afterSeq = page.at(-1)?.seq ?? afterSeq;
      }
      return undefined;
    },
  );
  const verify = audit
    .command('verify')
    .description('check signatures and chain; exit code 1 when something was changed');
  completeCommand(verify, build, 'pratique audit verify', async ({ output, connect }) => {
    const report = await (await connect()).auditVerify();
    output.show(report, () =>
      report.isIntact
        ? `The chain of ${report.records} records is intact; its head is ${printable(report.head)}`
        : `The chain is NOT intact: ${printable(report.trouble ?? 'no reason given', 1_000)}`,
    );
    return report.isIntact ? undefined : EXIT_FAILED;
  });
}

function entryText({ seq, atMs, record }: AuditEntry): string {
  const { kind, vm, ...rest } = record;
  return `${isoTime(atMs)} ${seq} ${printable(vm ?? '-')} ${printable(kind)} ${printable(safeJson(rest), 1_000)}`;
}
