// pratique doctor: is this host fit. Works without the daemon too: it is asked when things are broken.
import type { Command } from 'commander';
import { ERROR_FAMILIES, PratiqueError } from '../../src/base/errors.ts';
import { printable } from '../../src/base/printable.ts';
import type { DoctorLine } from '../doctor-line.ts';
import { type Build, type Context, completeCommand } from './context.ts';
import type { Colour, Output } from './output.ts';

/** Adds `pratique doctor`. */
export function addDoctorCommand(program: Command, build: Build): void {
  const command = program
    .command('doctor')
    .description('is this host fit; each line says how to mend it (exit code 3 if not)');
  completeCommand(command, build, 'pratique doctor', async (context) => {
    const lines = await linesFrom(context);
    const isFit = !lines.some(({ state }) => state === 'unfit');
    context.output.show({ isFit, lines }, () => doctorText(lines, context.output));
    return isFit ? undefined : ERROR_FAMILIES['host-unfit'].exitCode;
  });
}

async function linesFrom(context: Context): Promise<readonly DoctorLine[]> {
  const service = await context.connect();
  try {
    return await service.doctor();
  } catch (error) {
    if (!(error instanceof PratiqueError) || error.code !== 'daemon-down/not-running') throw error;
  }
  const { config } = await context.loadConfig();
  const [{ runDoctor }, { breakGlassPath }, { silentLog }] = await Promise.all([
    import('../doctor.ts'),
    import('../break-glass.ts'),
    import('../../src/base/log.ts'),
  ]);
  const page = breakGlassPath(config.dataFolder);
  const daemon: DoctorLine = {
    check: 'daemon',
    state: 'warning',
    detail: `not running; to plug a VM in by hand see ${page}`,
    mend: 'pratique serve, or systemctl start pratique',
  };
  return [daemon, ...(await runDoctor({ config, clock: context.clock, log: silentLog }))];
}

/** One line per check, the mending below it. */
export function doctorText(lines: readonly DoctorLine[], output: Output): string {
  const colours: Readonly<Record<DoctorLine['state'], Colour>> = { ok: 'green', warning: 'yellow', unfit: 'red' };
  return lines
    .map(({ check, state, detail, mend }) => {
      const head = `${output.paint(colours[state], state.padEnd(8))} ${printable(check)}: ${printable(detail, 2_000)}`;
      return mend === null ? head : `${head}\n         mend: ${printable(mend, 1_000)}`;
    })
    .join('\n');
}
