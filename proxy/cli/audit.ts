// pratique audit …: the chain of records.
import { join } from 'node:path';
import type { Command } from 'commander';
import { isoTime } from '../../src/base/clock.ts';
import { EXIT_FAILED, PratiqueError } from '../../src/base/errors.ts';
import { printable } from '../../src/base/printable.ts';
import type { AuditCheckpoint, AuditEntry, AuditLines, AuditReport, Service } from '../service.ts';
import { actorOf } from './actor.ts';
import { type Build, type Context, completeCommand } from './context.ts';
import { safeJson } from './output.ts';
import { wholeNumber } from './text.ts';

type VerifyOptions = { readonly checkpoint?: string; readonly file?: string; readonly key?: string };
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
  addKeepingCommands(audit, build);
  addVerifyCommand(audit, build);
}

/** What is carried to another machine, and what is changed because of it. */
function addKeepingCommands(audit: Command, build: Build): void {
  const checkpoint = audit
    .command('checkpoint')
    .description('how the chain ends now, signed, as JSON: keep it on another machine');
  completeCommand(checkpoint, build, 'pratique audit checkpoint > web-host.checkpoint', async ({ output, connect }) => {
    const made = await (await connect()).auditCheckpoint();
    output.show(made, () => safeJson(made));
    return undefined;
  });
  const exported = audit
    .command('export')
    .description('the records as signed envelopes, one JSON object a line, also when the daemon is not running')
    .option('--after <seq>', 'only records with a greater number', '0');
  completeCommand<{ readonly after: string }>(
    exported,
    build,
    'pratique audit export > web-host.audit.jsonl',
    async (context, _args, { after }) => {
      const { stdout } = build.surroundings;
      for await (const line of linesOf(context, wholeNumber('--after', after))) stdout.write(`${line}\n`);
      return undefined;
    },
  );
  const rotate = audit.command('rotate-key').description('sign with a new key from now on; both keys sign the change');
  completeCommand(rotate, build, 'pratique audit rotate-key', async ({ output, connect, env }) => {
    const rotated = await (await connect()).rotateAuditKey({ actor: actorOf(env) });
    output.done(rotated, `The key ${rotated.keyid} signs from record ${rotated.seq + 1} on; keep audit-keys.pub anew`);
    return undefined;
  });
}

function addVerifyCommand(audit: Command, build: Build): void {
  const verify = audit
    .command('verify')
    .description('check signatures and chain; exit code 1 when something was changed. Needs no daemon')
    .option('--checkpoint <file>', 'what `audit checkpoint` printed: also proves that no tail was cut since')
    .option('--file <file>', 'what `audit export` printed, instead of the chain of this host')
    .option('--key <file>', 'a copy of audit-keys.pub kept elsewhere, instead of the one beside the chain');
  completeCommand<VerifyOptions>(
    verify,
    build,
    'pratique audit verify --file web-host.audit.jsonl --key web-host.audit-keys.pub --checkpoint web-host.checkpoint',
    async (context, _args, options) => {
      const { output } = context;
      const { pathOf, readCheckpoint } = await import('./audit-files.ts');
      const kept = options.checkpoint === undefined ? null : await readCheckpoint(pathOf(options.checkpoint));
      const report = await reportOf(context, kept, options);
      output.show(report, () => reportText(report, kept));
      return report.isIntact ? undefined : EXIT_FAILED;
    },
  );
}

/** The daemon is asked only where it can answer: with keys or a file of one's own its word is not needed. */
async function reportOf(
  context: Context,
  kept: AuditCheckpoint | null,
  { file, key }: VerifyOptions,
): Promise<AuditReport> {
  const { verifyFile, verifyFolder } = await import('../../src/audit/kept-chain.ts');
  const { pathOf, readKeys } = await import('./audit-files.ts');
  const keys = key === undefined ? null : await readKeys(pathOf(key));
  const checkpoint = kept === null ? {} : { checkpoint: kept };
  if (file !== undefined) {
    const next = 'add --key with a copy of audit-keys.pub of the host';
    if (keys === null) throw new PratiqueError('usage/audit-key', 'a file does not say whose it should be', { next });
    return await verifyFile(pathOf(file), { keys, ...checkpoint });
  }
  if (keys !== null) return await verifyFolder(await folderOf(context), { keys, ...checkpoint });
  return await askOrElse(
    context,
    async (service) => await service.auditVerify(checkpoint),
    async (folder) => await verifyFolder(folder, checkpoint),
  );
}

async function* linesOf(context: Context, afterSeq: number): AsyncIterable<string> {
  let after = afterSeq;
  const page = async (service: Service): Promise<AuditLines> =>
    await service.auditLines({ afterSeq: after, limit: PAGE_RECORDS });
  for (;;) {
    const found = await askOrElse(context, page, async () => null);
    if (found === null) break;
    if (found.lines.length === 0) return;
    yield* found.lines;
    after = found.lastSeq;
  }
  const { linesOfFolder } = await import('../../src/audit/kept-chain.ts');
  yield* linesOfFolder(await folderOf(context), after);
}

/** The daemon's answer, or what the folder tells when it is not running. */
async function askOrElse<T>(
  context: Context,
  ask: (service: Service) => Promise<T>,
  look: (folder: string) => Promise<T>,
): Promise<T> {
  try {
    return await ask(await context.connect());
  } catch (error) {
    if (!(error instanceof PratiqueError) || error.code !== 'daemon-down/not-running') throw error;
    const { hasChain } = await import('../../src/audit/kept-chain.ts');
    const folder = await folderOf(context);
    // Without a chain there is nothing to say but that nobody answered.
    if (!(await hasChain(folder))) throw error;
    context.output.note('The daemon is not running: reading its audit folder.');
    return await look(folder);
  }
}

async function folderOf({ loadConfig }: Context): Promise<string> {
  return join((await loadConfig()).config.dataFolder, 'audit');
}

function reportText(report: AuditReport, kept: AuditCheckpoint | null): string {
  if (!report.isIntact) return `The chain is NOT intact: ${printable(report.trouble ?? 'no reason given', 1_000)}`;
  const intact = `The chain of ${report.records} records is intact; its head is ${printable(report.head)}`;
  return kept === null ? intact : `${intact}\nThe ${kept.records} records that the checkpoint saw are all there`;
}

function entryText({ seq, atMs, record }: AuditEntry): string {
  const { kind, vm, ...rest } = record;
  return `${isoTime(atMs)} ${seq} ${printable(vm ?? '-')} ${printable(kind)} ${printable(safeJson(rest), 1_000)}`;
}
