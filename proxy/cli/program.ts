// The command line: which commands there are, and how a run of one ends in an exit code.
import { Command, CommanderError } from 'commander';
import manifest from '../../package.json' with { type: 'json' };
import { classifyError, EXIT_DONE, PratiqueError } from '../../src/base/errors.ts';
import { addLicenseServerCommands } from '../license-server/commands.ts';
import { addAuditCommands } from './audit.ts';
import { addBackupCommands } from './backup.ts';
import { addConfigCommands } from './config.ts';
import type { Build, Surroundings } from './context.ts';
import { addDoctorCommand } from './doctor.ts';
import { addDriftCommand } from './drift.ts';
import { addLicenseCommands } from './license.ts';
import { makeOutput } from './output.ts';
import { addDemoCommand, addServeCommand } from './serve.ts';
import { addUpkeepCommands } from './upkeep.ts';
import { addVendorCommands } from './vendor.ts';
import { addVmCommands } from './vm.ts';

export const EXIT_CODES = `
Exit codes: 0 done; 1 failed; 2 usage; 3 the host is not fit; 4 the VM was quarantined; 5 refused by policy, license or
approval; 6 the vendor is ill; 7 the daemon is not running; 8 drift found (--fail-on).
PRATIQUE_DATA and PRATIQUE_RUN name the data and the run folder, whatever the configuration says.`;

/** Runs one command line (without program names) and returns its exit code; prints what goes wrong. */
export async function runCommandLine(argv: readonly string[], surroundings: Surroundings): Promise<number> {
  let exitCode = EXIT_DONE as number; // The cast widens a literal: commands set other codes.
  const program = buildProgram({
    surroundings,
    finish: (code) => {
      exitCode = code;
    },
  });
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return EXIT_DONE;
    const failure = error instanceof CommanderError ? usageError(error) : error;
    makeOutput(surroundings, argv.includes('--json')).fail(failure);
    return classifyError(failure).exitCode;
  }
}

/** The program with all its commands; tests look through it. */
export function buildProgram(build: Build): Command {
  const { stdout } = build.surroundings;
  const program = new Command('pratique')
    .version(manifest.version, '-V, --version', 'show the version')
    .description('A virtual machine reaches the network only after a confirmed update.')
    .exitOverride()
    // A verb's options are its own, also where the command above it has options of the same name.
    .enablePositionalOptions()
    .showSuggestionAfterError(true)
    .configureOutput({
      writeOut: (text) => void stdout.write(text),
      // Errors are printed once, by runCommandLine; help that was asked for goes to writeOut.
      writeErr: () => {},
      getOutHelpWidth: () => stdout.columns ?? 100,
    })
    .addHelpText('after', EXIT_CODES);
  addServeCommand(program, build);
  addDemoCommand(program, build);
  addVmCommands(program, build);
  addVendorCommands(program, build);
  addLicenseCommands(program, build);
  addDriftCommand(program, build);
  addDoctorCommand(program, build);
  addAuditCommands(program, build);
  addBackupCommands(program, build);
  addUpkeepCommands(program, build);
  addConfigCommands(program, build);
  addLicenseServerCommands(program, build);
  return program;
}

function usageError(error: CommanderError): PratiqueError {
  const isHelp = error.code === 'commander.help';
  const message = isHelp ? 'a command is missing' : error.message.replace(/^error: /, '').replaceAll('\n', ' ');
  return new PratiqueError('usage/command-line', message, { next: 'see `pratique --help`, or --help after a command' });
}
