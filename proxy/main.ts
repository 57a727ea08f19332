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

function interrupted(): AbortSignal {
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort());
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
