// pratique backup and pratique restore: the data folder in one file, and back. Both work on the folder itself, with or without a daemon.
import { createWriteStream } from 'node:fs';
import { resolve } from 'node:path';
import type { Command } from 'commander';
import { isoTime } from '../../src/base/clock.ts';
import { isDigest } from '../../src/base/digest-text.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { counted } from '../../src/base/printable.ts';
import type { BackupReport } from '../backup.ts';
import type { RestoreReport } from '../restore.ts';
import { type Build, type Context, completeCommand } from './context.ts';
import { safeJson } from './output.ts';

type BackupCommandOptions = { readonly to: string; readonly withBlobs?: boolean; readonly keys: boolean };
type RestoreCommandOptions = { readonly from: string; readonly data: string; readonly digest?: string };

/** Adds both commands. */
export function addBackupCommands(program: Command, build: Build): void {
  const backup = program
    .command('backup')
    .description('copy VMs, audit chain, keys and configuration into one file, also while the daemon runs')
    .requiredOption('--to <file>', 'a new file: .tar, .tar.gz or .tar.zst by its name; - for a plain tar on stdout')
    .option('--with-blobs', 'also the stored packages; without them a restored host fetches them again')
    .option('--no-keys', 'without the private keys of the audit chain');
  completeCommand<BackupCommandOptions>(backup, build, 'pratique backup --to host1.tar.zst', runBackup);
  const restore = program
    .command('restore')
    .description('make a data folder from a backup; every file is verified first')
    .requiredOption('--from <file>', 'what `pratique backup` wrote')
    .requiredOption('--data <folder>', 'the data folder to be: empty, or not there yet')
    .option('--digest <sha256>', 'refuse the file unless this is its digest, as `pratique backup` told it');
  const example = 'pratique restore --from host1.tar.zst --data /var/lib/pratique';
  completeCommand<RestoreCommandOptions>(restore, build, example, runRestore);
}

async function runBackup(
  context: Context,
  _args: readonly string[],
  options: BackupCommandOptions,
): Promise<undefined> {
  const { output, clock } = context;
  const { config, files } = await context.loadConfig();
  const { backUp, backUpToFile } = await import('../backup.ts');
  const what = {
    dataFolder: config.dataFolder,
    configFiles: files,
    vendors: config.vendors,
    hasKeys: options.keys,
    hasBlobs: options.withBlobs === true,
    clock,
  };
  if (options.to !== '-') {
    const report = await backUpToFile(resolve(options.to), what);
    for (const remark of report.remarks) output.warn(remark);
    output.show(report, () => backupText(report));
    return undefined;
  }
  if (output.columns !== null) {
    throw new PratiqueError('usage/command-line', 'a backup is not written to a terminal', {
      next: 'redirect it to a file, or give --to a name',
    });
  }
  // The archive takes stdout, so what is told goes to stderr.
  const report = await backUp(() => createWriteStream('', { fd: 1, autoClose: false }), 'none', what);
  for (const remark of report.remarks) output.warn(remark);
  output.stderr.write(`${output.isJson ? safeJson(report) : backupText(report)}\n`);
  return undefined;
}

function backupText({ file, sizeBytes, digest, manifest }: BackupReport): string {
  const schemas = Object.entries(manifest.schemas).map(([path, schema]) => `${path} ${schema}`);
  return [
    `${file ?? 'stdout'}: ${counted(manifest.files, 'file')}, ${sizeBytes} bytes, as of ${isoTime(manifest.madeAtMs)}`,
    `sha256 ${digest}`,
    `schemas: ${schemas.join(', ')}; packages in the store: ${manifest.blobs}, ${manifest.hasBlobs ? 'included' : 'not included'}`,
  ].join('\n');
}

async function runRestore(
  context: Context,
  _args: readonly string[],
  options: RestoreCommandOptions,
): Promise<undefined> {
  const { output, clock } = context;
  const { from, data, digest = null } = options;
  if (digest !== null && !isDigest(digest)) {
    throw new PratiqueError('usage/command-line', '--digest is not a sha256 in 64 lower-case hex digits', {
      next: 'copy it from what `pratique backup` told',
    });
  }
  const { restore } = await import('../restore.ts');
  const report = await restore({ file: resolve(from), dataFolder: resolve(data), digest, clock });
  output.show(report, () => restoreText(report));
  return undefined;
}

function restoreText({ dataFolder, madeAtMs, program, files, blobs, config, next }: RestoreReport): string {
  const packages = blobs === 0 ? '' : `, ${counted(blobs, 'package')} among them`;
  return [
    `${dataFolder} is as the host was at ${isoTime(madeAtMs)} (Pratique ${program}): ${counted(files, 'file')}${packages}, all verified`,
    ...config.map(({ path, from }) => `configuration: ${path} was ${from}`),
    ...next.map((step) => `next: ${step}`),
  ].join('\n');
}
