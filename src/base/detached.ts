// Processes that outlive us: in a session of their own and, under systemd, a scope of their own, with as few rights as they need.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { withoutCredentials } from './redact.ts';

const LAUNCHER = fileURLToPath(new URL('launch.pl', import.meta.url));
/** sd_booted(3). */
const SYSTEMD_SIGN = '/run/systemd/system';

export type Identity = {
  readonly uid: number;
  readonly gid: number;
  /** The only supplementary group; absent: none. */
  readonly group?: number;
  /** The only capability that it has and keeps, by setpriv's word (`sys_admin`); absent: none. */
  readonly capability?: string;
};

export type Listener = { readonly path: string; readonly fd: number };

export type LauncherOptions = {
  /** Written before the command begins: `PID START`, for parseProcessId. */
  readonly pidFile: string;
  readonly taps?: readonly { readonly name: string; readonly fd: number }[];
  readonly listeners?: readonly Listener[];
  /** Who may connect to the listeners besides root; absent: only our own user. */
  readonly socketOwner?: { readonly uid: number; readonly gid: number };
  /** Null: the command runs as we do. */
  readonly identity: Identity | null;
  readonly command: readonly string[];
};

/** Under systemd our own unit's end would take the process along; a scope of its own does not. Empty elsewhere. */
export function scopePrefix(unit: string, isUsers: boolean): readonly string[] {
  if (!existsSync(SYSTEMD_SIGN)) return [];
  const user = isUsers ? ['--user'] : [];
  return ['systemd-run', ...user, '--scope', '--quiet', '--collect', `--unit=${unit}`, '--'];
}

/** The argv of launch.pl: it opens what the command inherits, writes the pid file, gives up rights and becomes the command. */
export function launcherArgv(options: LauncherOptions): readonly string[] {
  const { pidFile, taps = [], listeners = [], socketOwner, identity, command } = options;
  return [
    ...['perl', LAUNCHER, '--pid-file', pidFile],
    ...taps.flatMap(({ name, fd }) => ['--tap', `${name}:${fd}`]),
    ...(socketOwner === undefined ? [] : ['--socket-owner', `${socketOwner.uid}:${socketOwner.gid}`]),
    ...listeners.flatMap(({ path, fd }) => ['--listen', `${path}:${fd}`]),
    '--',
    ...(identity === null ? [] : becoming(identity)),
    ...command,
  ];
}

function becoming({ uid, gid, group, capability }: Identity): readonly string[] {
  const groups = group === undefined ? '--clear-groups' : `--groups=${group}`;
  const set = capability === undefined ? '-all' : `-all,+${capability}`;
  const ambient = capability === undefined ? [] : [`--ambient-caps=${set}`];
  const rights = ['--no-new-privs', `--inh-caps=${set}`, ...ambient, `--bounding-set=${set}`];
  return ['setpriv', `--reuid=${uid}`, `--regid=${gid}`, groups, ...rights, '--'];
}

export type Detached = {
  /** Whether it has ended, or could not be started. */
  readonly hasEnded: () => boolean;
  /** Resolves when it has, with how: `ended with exit code 1`, `was killed by SIGKILL`, `could not be started`. */
  readonly ended: Promise<string>;
  readonly kill: () => void;
};

/** Starts it; what it prints goes to the log file, which begins anew. It does not keep our own process alive. */
export async function startDetached(argv: readonly string[], logFile: string): Promise<Detached> {
  const log = await open(logFile, 'w', 0o600);
  try {
    const [program = '', ...args] = argv;
    const env = withoutCredentials(process.env);
    const child = spawn(program, args, { detached: true, stdio: ['ignore', log.fd, log.fd], cwd: '/', env });
    const ending = Promise.withResolvers<string>();
    let hasEnded = false;
    const end = (how: string): void => {
      hasEnded = true;
      ending.resolve(how);
    };
    child.on('error', () => end('could not be started'));
    child.on('exit', (code, signal) =>
      end(signal === null ? `ended with exit code ${code}` : `was killed by ${signal}`),
    );
    child.unref();
    return { hasEnded: () => hasEnded, ended: ending.promise, kill: () => void child.kill('SIGKILL') };
  } finally {
    await log.close();
  }
}

/** The end of what was written to a log, at most so many bytes of it; empty when there is none. */
export async function logTail(logFile: string, bytesMax: number): Promise<string> {
  const handle = await open(logFile, 'r').catch(() => null);
  if (handle === null) return '';
  try {
    const { size } = await handle.stat();
    const tail = Buffer.alloc(Math.min(size, bytesMax));
    const { bytesRead } = await handle.read(tail, 0, tail.length, size - tail.length);
    return tail.toString('utf8', 0, bytesRead).trim();
  } finally {
    await handle.close();
  }
}
