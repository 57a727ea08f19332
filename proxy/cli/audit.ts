// pratique audit …: the chain of records.
import { createReadStream } from 'node:fs';
import type { Command } from 'commander';
import { isoTime } from '../../src/base/clock.ts';
import { EXIT_FAILED, PratiqueError } from '../../src/base/errors.ts';
import { CHECKPOINT_FILE_BYTES_MAX } from '../../src/base/limits.ts';
import { printable } from '../../src/base/printable.ts';
import type { AuditCheckpoint, AuditEntry, AuditReport } from '../service.ts';
import { type Build, completeCommand } from './context.ts';
import { safeJson } from './output.ts';
import { wholeNumber } from './text.ts';

type VerifyOptions = { readonly checkpoint?: string };
type ShowOptions = { readonly vm?: string; readonly after: string; readonly limit: string };

const PAGE_RECORDS = 1_000;
const NEXT = 'give a file with what `pratique audit checkpoint` printed';

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
  addChainCommands(audit, build);
}

function addChainCommands(audit: Command, build: Build): void {
  const checkpoint = audit
    .command('checkpoint')
    .description('how the chain ends now, signed, as JSON: keep it on another machine');
  completeCommand(checkpoint, build, 'pratique audit checkpoint > web-host.checkpoint', async ({ output, connect }) => {
    const made = await (await connect()).auditCheckpoint();
    output.show(made, () => safeJson(made));
    return undefined;
  });
  const verify = audit
    .command('verify')
    .description('check signatures and chain; exit code 1 when something was changed')
    .option('--checkpoint <file>', 'what `audit checkpoint` printed: also proves that no tail was cut since');
  completeCommand<VerifyOptions>(
    verify,
    build,
    'pratique audit verify --checkpoint web-host.checkpoint',
    async ({ output, connect }, _args, options) => {
      const kept = options.checkpoint === undefined ? null : await readCheckpoint(options.checkpoint);
      const report = await (await connect()).auditVerify(kept === null ? {} : { checkpoint: kept });
      output.show(report, () => reportText(report, kept));
      return report.isIntact ? undefined : EXIT_FAILED;
    },
  );
}

function reportText(report: AuditReport, kept: AuditCheckpoint | null): string {
  if (!report.isIntact) return `The chain is NOT intact: ${printable(report.trouble ?? 'no reason given', 1_000)}`;
  const intact = `The chain of ${report.records} records is intact; its head is ${printable(report.head)}`;
  return kept === null ? intact : `${intact}\nThe ${kept.records} records that the checkpoint saw are all there`;
}

/** The checkpoint in a file or pipe. Throws `usage/checkpoint` naming file and field; whether it is genuine, the chain's key tells. */
async function readCheckpoint(path: string): Promise<AuditCheckpoint> {
  const { parseJson } = await import('../../src/base/parse.ts');
  const { AuditCheckpointSchema } = await import('../api-schemas.ts');
  const { makeCheck, misfitText } = await import('../schema-check.ts');
  const value = parseJson(await readBounded(path), path, 'usage/checkpoint');
  const found = makeCheck(AuditCheckpointSchema)(value);
  if (found === null) return value as AuditCheckpoint; // The cast holds: the check against this schema has just passed.
  throw new PratiqueError('usage/checkpoint', `${path}: ${misfitText(found)}`, { next: NEXT });
}

async function readBounded(path: string): Promise<string> {
  const pieces: Buffer[] = [];
  try {
    // `end` counts itself in: one byte over the limit tells a file that is too large.
    for await (const piece of createReadStream(path, { end: CHECKPOINT_FILE_BYTES_MAX })) {
      pieces.push(piece as Buffer); // The cast holds: no encoding is set on the stream.
    }
  } catch (cause) {
    throw new PratiqueError('usage/checkpoint', `${path}: cannot be read`, { cause, next: NEXT });
  }
  const bytes = Buffer.concat(pieces);
  if (bytes.length <= CHECKPOINT_FILE_BYTES_MAX) return bytes.toString('utf8');
  throw new PratiqueError('usage/checkpoint', `${path}: larger than ${CHECKPOINT_FILE_BYTES_MAX} bytes`, {
    next: NEXT,
  });
}

function entryText({ seq, atMs, record }: AuditEntry): string {
  const { kind, vm, ...rest } = record;
  return `${isoTime(atMs)} ${seq} ${printable(vm ?? '-')} ${printable(kind)} ${printable(safeJson(rest), 1_000)}`;
}
