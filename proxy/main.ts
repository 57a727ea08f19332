#!/usr/bin/env node
// The program `pratique`: hands the process's arguments, streams and signals to the command line.
import { enableCompileCache } from 'node:module';
import { fileURLToPath } from 'node:url';

// V8 lets its young generation grow to 130 MB under a burst of VMs, whatever is live in it, and keeps that. Only a flag at the
// start bounds it, so the daemon starts itself once more in the same process (execve(2)).
const YOUNG_GENERATION = '--max-semi-space-size=8';
if (process.argv[2] === 'serve' && !process.execArgv.includes(YOUNG_GENERATION)) {
  const argv = [process.execPath, YOUNG_GENERATION, ...process.execArgv, ...process.argv.slice(1)];
  process.execve?.(process.execPath, argv, process.env);
}
// Halves the start of every command: types are stripped once. Beside the code, because a cache in /tmp could be forged.
enableCompileCache(fileURLToPath(new URL('../build/compile-cache', import.meta.url)));
const { runCommandLine } = await import('./cli/program.ts');
const { systemClock } = await import('../src/base/clock.ts');
const { EXIT_FAILED } = await import('../src/base/errors.ts');
const { ENDING_TIMEOUT_MS } = await import('../src/base/limits.ts');

/**
 * The first signal ends in order, the second at once: whatever was under way is journaled, as for a power cut. What does not end in
 * time is left, too. SIGHUP ends in order like the others: a service manager starts us again, with the configuration of then.
 */
function interrupted(): AbortSignal {
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      if (stop.signal.aborted) process.exit(EXIT_FAILED);
      stop.abort();
      systemClock.after(ENDING_TIMEOUT_MS, () => {
        const seconds = ENDING_TIMEOUT_MS / 1000;
        process.stderr.write(
          `pratique: did not end within ${seconds} s; what is under way goes on at the next start\n`,
        );
        process.exit(EXIT_FAILED);
      });
    });
  }
  return stop.signal;
}
// Whoever reads our output may stop reading (`| head`): that is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));

process.exitCode = await runCommandLine(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
  uid: process.getuid?.() ?? 0,
  interrupted,
});
