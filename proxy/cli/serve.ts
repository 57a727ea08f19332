// pratique serve and pratique demo: the two commands that run a host themselves.
import { type Command, Option } from 'commander';
import { printable } from '../../src/base/printable.ts';
import { DEMO_GUESTS, type DemoGuest, SCENARIOS, type ScenarioName } from '../demo/scenarios.ts';
import { type Build, completeCommand } from './context.ts';
import { safeJson } from './output.ts';

type DemoOptions = {
  readonly guest: DemoGuest;
  readonly scenario: ScenarioName;
  readonly keep?: boolean;
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
    const { clock, env, uid, interrupted, output } = context;
    // Asked for before anything is opened: what is opened is closed in order.
    const signal = interrupted();
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
    .addOption(new Option('--guest <guest>', 'which guest').choices([...DEMO_GUESTS]).default('tiny'))
    .addOption(new Option('--scenario <name>', 'what happens').choices([...SCENARIOS]).default('ok'))
    .option('--keep', 'leave the folders of the run for a look');
  completeCommand<DemoOptions>(
    command,
    build,
    'pratique demo --scenario forged-confirm',
    async (context, _args, options) => {
      const { makeTimelinePrinter } = await import('./timeline.ts');
      const { runDemo } = await import('../demo/demo.ts');
      const { output, clock, env, interrupted } = context;
      const timeline = makeTimelinePrinter(output.stderr, clock, env);
      // Remarks come before and after the run; in between, only the timeline writes.
      const say = (line: string): void => {
        timeline.end();
        output.stderr.write(`${printable(line, 1_000)}\n`);
      };
      try {
        const { guest, scenario, keep } = options;
        const demo = { guest, scenario, keep: keep === true, onEvent: timeline.push, say, signal: interrupted() };
        const { document, exitCode } = await runDemo(demo);
        timeline.end();
        output.show(document, () => safeJson(document, 2));
        return exitCode;
      } finally {
        timeline.end();
      }
    },
  );
}
