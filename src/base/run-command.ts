// Runs one outside command with bounded output and time. argv only, never a shell.
import { spawn } from 'node:child_process';
import { systemClock } from './clock.ts';
import { PratiqueError } from './errors.ts';
import { COMMAND_OUTPUT_BYTES_MAX, COMMAND_TIMEOUT_MS } from './limits.ts';
import { printableBlock } from './printable.ts';

export type CommandOptions = {
  readonly timeoutMs?: number;
  readonly input?: string | Uint8Array;
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  readonly signal?: AbortSignal;
  /** What we were doing, for the error: "making the tap pq0". */
  readonly purpose?: string;
  readonly outputBytesMax?: number;
};

export type CommandResult = {
  readonly exitCode: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
};

export class CommandError extends PratiqueError {}

/** Runs a command and returns how it ended, whatever the exit code. Throws CommandError if it cannot start, takes too long or says too much. */
export async function tryCommand(argv: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
  const [program, ...args] = argv;
  if (program === undefined) throw new Error('assertion failed: a command needs a program');
  const purpose = options.purpose ?? `running ${program}`;
  const outputMax = options.outputBytesMax ?? COMMAND_OUTPUT_BYTES_MAX;
  return await new Promise<CommandResult>((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: options.env ?? process.env,
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      ...(options.signal === undefined ? {} : { signal: options.signal }),
      killSignal: 'SIGKILL',
    });
    // Not Node's own time limit: its timer outlives a program that could not start, and keeps our process alive with it.
    const cancel = systemClock.after(options.timeoutMs ?? COMMAND_TIMEOUT_MS, () => void child.kill('SIGKILL'));
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    let total = 0;
    const keep = (list: Buffer[]) => (piece: Buffer) => {
      total += piece.length;
      if (total <= outputMax) list.push(piece);
      else child.kill('SIGKILL');
    };
    child.stdout.on('data', keep(out));
    child.stderr.on('data', keep(err));
    child.stdin.on('error', () => {}); // EPIPE: the command ended without reading; its exit code tells.
    child.on('error', (cause) => {
      cancel();
      reject(
        new CommandError('host-fault/command', `${purpose}: ${program} could not run`, {
          cause,
          next: `check that ${program} is installed`,
        }),
      );
    });
    child.on('close', (exitCode, signal) => {
      cancel();
      if (total > outputMax) {
        reject(
          new CommandError('host-fault/command-output', `${purpose}: ${program} printed more than ${outputMax} bytes`),
        );
        return;
      }
      resolve({
        exitCode,
        signal,
        stdout: Buffer.concat(out).toString('utf8'),
        stderr: Buffer.concat(err).toString('utf8'),
      });
    });
    child.stdin.end(options.input ?? '');
  });
}

/** Runs a command that must succeed and returns its stdout. Throws CommandError with the end of its stderr otherwise. */
export async function runCommand(argv: readonly string[], options: CommandOptions = {}): Promise<string> {
  const result = await tryCommand(argv, options);
  if (result.exitCode === 0) return result.stdout;
  const ended = result.signal === null ? `exit code ${result.exitCode}` : `killed by ${result.signal} (time limit?)`;
  const said = printableBlock(result.stderr.trim() || result.stdout.trim(), 600);
  throw new CommandError(
    'host-fault/command',
    `${options.purpose ?? `running ${argv[0]}`}: ${argv[0]} ended with ${ended}: ${said}`,
  );
}
