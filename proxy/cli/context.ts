// What every command gets: its output, the configuration, the daemon behind its socket. Heavy parts load when they are used.
import type { Command } from 'commander';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { EXIT_DONE } from '../../src/base/errors.ts';
import type { LoadedConfig } from '../config.ts';
import type { Service } from '../service.ts';
import { makeOutput, type Output, type Terminal } from './output.ts';

/** What the process gives the command line. */
export type Surroundings = Terminal & {
  readonly uid: number;
  /** A signal that Ctrl-C or SIGTERM aborts from now on; commands that never ask for it are ended by them at once. */
  readonly interrupted: () => AbortSignal;
};

export type Context = {
  readonly output: Output;
  readonly clock: Clock;
  readonly env: NodeJS.ProcessEnv;
  readonly uid: number;
  readonly interrupted: () => AbortSignal;
  readonly loadConfig: () => Promise<LoadedConfig>;
  readonly connect: () => Promise<Service>;
};

/** Options that every command has. */
type CommonOptions = { readonly json?: boolean; readonly config?: string };

/** A command's work: arguments as given, options as declared. Returns the exit code, nothing for 0. */
export type Work<Options> = (
  context: Context,
  args: readonly string[],
  options: Options,
) => Promise<number | undefined>;

/** What the program is built with; `finish` takes the exit code. */
export type Build = { readonly surroundings: Surroundings; readonly finish: (exitCode: number) => void };

/** Adds the common options, the example and the work to a command. */
export function completeCommand<Options>(
  command: Command,
  { surroundings, finish }: Build,
  example: string,
  work: Work<Options>,
): void {
  command
    .option('--json', 'answer with one JSON document (streams: one a line)')
    .option('--config <file>', 'configuration file instead of the default one')
    .addHelpText('after', `\nExample:\n  $ ${example}`)
    .action(async () => {
      const options = command.opts<Options & CommonOptions>();
      const context = makeContext(surroundings, options);
      finish((await work(context, command.args, options)) ?? EXIT_DONE);
    });
}

function makeContext(surroundings: Surroundings, options: CommonOptions): Context {
  const { env, uid, interrupted } = surroundings;
  const loadConfig = async (): Promise<LoadedConfig> => {
    const config = await import('../config.ts');
    return await config.loadConfig({ ...(options.config === undefined ? {} : { path: options.config }), env, uid });
  };
  return {
    output: makeOutput(surroundings, options.json === true),
    clock: systemClock,
    env,
    uid,
    interrupted,
    loadConfig,
    connect: async () => {
      const { config } = await loadConfig();
      const { socketPathOf } = await import('../config.ts');
      const { makeApiClient } = await import('../api-client.ts');
      return makeApiClient({ socketPath: socketPathOf(config.runFolder), clock: systemClock });
    },
  };
}
