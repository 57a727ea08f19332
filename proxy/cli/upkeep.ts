// pratique store … and pratique clock …: what an operator does for the host itself now and then.
import { userInfo } from 'node:os';
import type { Command } from 'commander';
import { isoTime } from '../../src/base/clock.ts';
import { EXIT_FAILED } from '../../src/base/errors.ts';
import { SCRUB_ASK_MS } from '../../src/base/limits.ts';
import { counted, printable } from '../../src/base/printable.ts';
import type { ScrubView } from '../scrubbing.ts';
import { type Build, type Context, completeCommand } from './context.ts';

/** Adds both nouns and their verbs. */
export function addUpkeepCommands(program: Command, build: Build): void {
  const store = program.command('store').description('the packages that this host has fetched');
  const scrub = store
    .command('scrub')
    .description('read every stored package again; damaged ones are taken out. Exit code 1 when there were any')
    .option('--no-wait', 'begin, and return at once');
  completeCommand<{ readonly wait: boolean }>(scrub, build, 'pratique store scrub', async (context, _args, options) => {
    const service = await context.connect();
    const begun = await service.startScrub();
    if (!options.wait) return showScrub(context, begun);
    const signal = context.interrupted();
    // It ends with the reading, which is paced and bounded by the store's budget, or with Ctrl-C; the daemon goes on then.
    for (let view = begun; ; view = await service.scrubView()) {
      if (!view.isRunning) return showScrub(context, view);
      await context.clock.sleep(SCRUB_ASK_MS, signal);
    }
  });
  const show = store.command('show').description('what the last reading of the store found; exit code 1 for damage');
  completeCommand(show, build, 'pratique store show', async (context) =>
    showScrub(context, await (await context.connect()).scrubView()),
  );
  addClockCommand(program, build);
}

function showScrub({ output }: Context, view: ScrubView): number | undefined {
  output.show(view, () => scrubText(view));
  return view.last !== null && view.last.rottenBlobs > 0 && !view.isRunning ? EXIT_FAILED : undefined;
}

function scrubText({ isRunning, last }: ScrubView): string {
  const now = isRunning ? ['The store is being read now.'] : [];
  if (last === null) return [...now, 'It was not read again yet.'].join('\n');
  const found = last.rottenBlobs === 0 ? 'all sound' : `${last.rottenBlobs} damaged, taken out of the store`;
  return [
    ...now,
    `${isoTime(last.endedAtMs)}: ${counted(last.checkedBlobs, 'package')}, ${last.checkedBytes} bytes: ${found}`,
    ...last.rotten.map(
      ({ digest, fault, owners }) =>
        `  ${digest} ${fault}${owners.length === 0 ? '' : `, needed by ${printable(owners.join(', '), 300)}`}`,
    ),
  ].join('\n');
}

function addClockCommand(program: Command, build: Build): void {
  const clock = program.command('clock').description("the host's idea of time, which never goes back by itself");
  const accept = clock
    .command('accept')
    .description('the clock is right now and was wrong before: hold signatures against it again (audited)')
    .requiredOption('--reason <text>', 'why; goes into the audit record');
  completeCommand<{ readonly reason: string }>(
    accept,
    build,
    "pratique clock accept --reason 'the RTC was ten years ahead'",
    async ({ output, connect }, _args, { reason }) => {
      const view = await (await connect()).acceptClock({ reason, actor: userInfo().username });
      output.done(
        view,
        `signatures are held against ${isoTime(view.trustedMs)} again; ask the vendors: pratique vendor check`,
      );
      return undefined;
    },
  );
}
