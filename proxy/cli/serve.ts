// pratique serve and pratique demo: the two commands that run a host themselves.
import { type Command, Option } from 'commander';
import type { VmEventRecord } from '../service.ts';
import { type Build, completeCommand } from './context.ts';

type DemoOptions = {
  readonly guest: 'tiny' | 'debian';
  readonly scenario: string;
  readonly keep?: boolean;
  readonly json?: boolean;
};

/** Where a demo says what happens: the timeline of the run, and remarks beside it. Everything goes to stderr. */
export type DemoOut = {
  readonly event: (event: VmEventRecord) => void;
  readonly note: (sentence: string) => void;
};

/** Adds `pratique serve`. */
export function addServeCommand(program: Command, build: Build): void {
  const command = program.command('serve').description('the daemon, in the foreground; ends on SIGTERM or Ctrl-C');
  completeCommand(command, build, 'pratique serve --config /etc/pratique/pratique.toml', async (context) => {
    const { config } = await context.loadConfig();
    const [{ makeLog }, { startDaemon }, { startHost }] = await Promise.all([
      import('../../src/base/log.ts'),
      import('../daemon.ts'),
      import('../host.ts'),
    ]);
    const log = makeLog(config.logLevel);
    const { clock, env, uid, signal, output } = context;
    const daemon = await startDaemon({ config, log, clock, env, uid, startHost });
    output.note(`Serving on ${daemon.socketPath}; VMs stay under the gate when this ends.`);
    await aborted(signal);
    await daemon.close();
    return undefined;
  });
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}

/** Adds `pratique demo`. */
export function addDemoCommand(program: Command, build: Build): void {
  const command = program
    .command('demo')
    .description('a stale VM from power-on to plugged in, on this machine, with nothing left behind')
    .addOption(new Option('--guest <guest>', 'which guest').choices(['tiny', 'debian']).default('tiny'))
    .option('--scenario <name>', 'ok, uptodate, install-fails, forged-confirm, agent-silent, daemon-killed', 'ok')
    .option('--keep', 'leave the folders of the run for a look');
  completeCommand<DemoOptions>(
    command,
    build,
    'pratique demo --scenario forged-confirm',
    async (context, _args, options) => {
      const { makeTimelinePrinter } = await import('./timeline.ts');
      const { runDemo } = await import('../demo/demo.ts');
      const { output, clock, env } = context;
      const timeline = makeTimelinePrinter(output.stderr, clock, env);
      const out: DemoOut = { event: timeline.push, note: output.note };
      const { guest, scenario } = options;
      try {
        const { document, exitCode } = await runDemo({
          guest,
          scenario,
          keep: options.keep === true,
          json: options.json === true,
          out,
        });
        timeline.end();
        output.show(document, () => JSON.stringify(document, null, 2));
        return exitCode;
      } finally {
        timeline.end();
      }
    },
  );
}
