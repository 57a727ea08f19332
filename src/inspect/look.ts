// One open image: look.pl in namespaces of its own, asked over pipes. What it answers comes from a guest's disk: all of it is bounded.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Clock } from '../base/clock.ts';
import type { ErrorCode } from '../base/errors.ts';
import {
  INSPECT_CPU_SECONDS_MAX,
  INSPECT_END_TIMEOUT_MS,
  INSPECT_FILE_BYTES_MAX,
  INSPECT_MEMORY_BYTES_MAX,
  INSPECT_TIMEOUT_MS,
  VERIFY_CPU_SECONDS_MAX,
  VERIFY_JOURNAL_BYTES_MAX,
  VERIFY_TIMEOUT_MS,
} from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import type { DiskImage, DiskViewSource } from '../model/disk-image.ts';
import { blockNode, filesOf, isView, replayNode } from './block-node.ts';
import { InspectError, WITHOUT_A_LOOK } from './errors.ts';

export type Look = {
  readonly sizeBytes: number;
  /** Bytes of the image as the guest sees its disk; fewer at its end. */
  readonly read: (offsetBytes: number, lengthBytes: number) => Promise<Buffer>;
  /** What debugfs prints for these commands on the filesystem at the offset, at most `bytesMax` of it. */
  readonly debugfs: (request: DebugfsRequest) => Promise<{ readonly output: Buffer; readonly isCut: boolean }>;
  /**
   * Replays the journal of the filesystem in this place, beside the disk; asked about it as `replayed` it answers with what the
   * guest has made durable. Views of running VMs only, and once. Throws InspectError.
   */
  readonly replay?: (place: { readonly offsetBytes: number; readonly sizeBytes: number }) => Promise<void>;
  /** Ends it. When it resolves, no program has the image open any more. */
  readonly close: () => Promise<void>;
};

export type DebugfsRequest = {
  readonly offsetBytes: number | 'replayed';
  readonly commands: string;
  readonly bytesMax: number;
};

export type LookOptions = {
  /** With real paths, which the caller has checked. */
  readonly image: DiskImage | DiskViewSource;
  /** Whose programs look; null: ours, the case without root. */
  readonly uid: number | null;
  readonly clock: Clock;
  readonly signal: AbortSignal;
};

type Target = LookOptions['image'];

/** Given to perl as text: the user who looks may not be able to read our own files. */
const SCRIPT = readFileSync(fileURLToPath(new URL('look.pl', import.meta.url)), 'utf8');

const LINE_BYTES_MAX = 1_000;
const STDERR_CHARS_MAX = 2_000;

/** Opens the image. Throws InspectError that says why it cannot be looked into; nothing is left running then. */
export async function openLook(options: LookOptions): Promise<Look> {
  const { image, clock, signal } = options;
  signal.throwIfAborted();
  const [program = 'prlimit', ...args] = argvOf(options);
  const child = spawn(program, args, {
    // The last one is the lifeline: all of it ends when our side is closed, also by our own death.
    stdio: ['pipe', 'pipe', 'pipe', 'pipe'],
    cwd: '/',
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' },
  });
  const answers = new Answers(child);
  const ended = endOf(child);
  const letGo = (): void => {
    child.stdin.destroy();
    child.stdio[3]?.destroy();
  };
  const close = async (): Promise<void> => {
    letGo();
    // If it does not end by itself it is killed, and its first process takes the others along.
    const cancel = clock.after(INSPECT_END_TIMEOUT_MS, () => child.kill('SIGKILL'));
    await ended;
    cancel();
  };
  const give = (reason: unknown): void => {
    answers.fail(reason);
    letGo();
  };
  const timeoutMs = isView(image) ? VERIFY_TIMEOUT_MS : INSPECT_TIMEOUT_MS;
  const cancelDeadline = clock.after(timeoutMs, () => give(tooLong(image, timeoutMs)));
  const stop = (): void => give(signal.reason);
  signal.addEventListener('abort', stop, { once: true });
  ended.finally(() => {
    cancelDeadline();
    signal.removeEventListener('abort', stop);
  });
  const line = await answers.line().catch(async (error: unknown) => {
    await close();
    throw error;
  });
  const sizeBytes = /^ready (\d{1,16})$/.exec(line)?.[1];
  if (sizeBytes !== undefined) {
    const replay = isView(image) ? { replay: makeReplay(image, child, answers) } : {};
    return { sizeBytes: Number(sizeBytes), ...requestsOf(child, answers), ...replay, close };
  }
  await close();
  throw notReady(line.replace(/^fail /, '') || answers.words() || 'it ended without a word', image);
}

function argvOf({ image, uid }: LookOptions): readonly string[] {
  const limits = [
    ...[`--cpu=${isView(image) ? VERIFY_CPU_SECONDS_MAX : INSPECT_CPU_SECONDS_MAX}`],
    // Whoever replays a journal writes at any place of a file as large as the disk; who keeps that is bounded then.
    ...(isView(image) ? [] : [`--fsize=${INSPECT_FILE_BYTES_MAX}`]),
    `--as=${INSPECT_MEMORY_BYTES_MAX}`,
    ...['--core=0', '--nofile=256'],
  ];
  const namespaces = ['--user', '--map-root-user', '--mount', '--pid', '--net', '--ipc', '--uts'];
  const inner = ['perl', '-e', SCRIPT, 'inner', blockNode(image), ...filesOf(image)];
  const isolated = ['unshare', ...namespaces, '--fork', '--kill-child=SIGKILL', '--', ...inner];
  const outer = ['unshare', '--mount', '--propagation', 'private', '--', 'perl', '-e', SCRIPT, 'outer', String(uid)];
  return ['prlimit', ...limits, ...(uid === null ? [] : outer), ...isolated];
}

function endOf(child: ChildProcessWithoutNullStreams): Promise<void> {
  return new Promise((resolve) => {
    child.on('close', () => resolve());
    child.on('error', () => resolve()); // It could not be started.
  });
}

function makeReplay(view: DiskViewSource, child: ChildProcessWithoutNullStreams, answers: Answers) {
  return async (place: { readonly offsetBytes: number; readonly sizeBytes: number }): Promise<void> => {
    const node = Buffer.from(replayNode(view, place));
    child.stdin.write(`replay ${place.sizeBytes} ${VERIFY_JOURNAL_BYTES_MAX} ${node.length}\n`);
    child.stdin.write(node);
    try {
      await answers.bytes(0);
    } catch (cause) {
      if (!(cause instanceof InspectError) || !/: journal: /.test(cause.message)) throw cause;
      throw new InspectError('guest-fault/disk-damaged', `cannot look inside ${view.path}: its journal is damaged`, {
        cause,
      });
    }
  };
}

function requestsOf(child: ChildProcessWithoutNullStreams, answers: Answers): Pick<Look, 'read' | 'debugfs'> {
  return {
    read: async (offsetBytes, lengthBytes) => {
      child.stdin.write(`read ${offsetBytes} ${lengthBytes}\n`);
      return (await answers.bytes(lengthBytes)).output;
    },
    debugfs: async ({ offsetBytes, commands, bytesMax }) => {
      const text = Buffer.from(commands);
      child.stdin.write(`debugfs ${offsetBytes} ${bytesMax} ${text.length}\n`);
      child.stdin.write(text);
      return await answers.bytes(bytesMax);
    },
  };
}

/** The answers of the other side, in order. */
class Answers {
  readonly #pieces: Buffer[] = [];
  #held = 0;
  #stderr = '';
  #failure: { readonly reason: unknown } | null = null;
  #wake = (): void => {};

  constructor(child: ChildProcessWithoutNullStreams) {
    child.stdout.on('data', (piece: Buffer) => {
      this.#pieces.push(piece);
      this.#held += piece.length;
      this.#wake();
    });
    child.stderr.on('data', (piece: Buffer) => {
      this.#stderr = (this.#stderr + piece.toString('latin1')).slice(-STDERR_CHARS_MAX);
    });
    child.stdin.on('error', () => {}); // It ended without reading; the end of its stdout tells.
    const end = (cause?: unknown): void =>
      this.fail(new InspectError('host-fault/look', 'looking into a disk: the look ended early', { cause }));
    child.on('error', end);
    child.stdout.on('end', () => end());
  }

  fail(reason: unknown): void {
    this.#failure ??= { reason };
    this.#wake();
  }

  /** What its programs complained about. */
  words(): string {
    return this.#stderr.trim();
  }

  /** The next line; empty when it ended without one. */
  async line(): Promise<string> {
    for (;;) {
      const held = this.#take(0);
      const newline = held.indexOf(10);
      if (newline >= 0) {
        this.#keep(held.subarray(newline + 1));
        return held.subarray(0, newline).toString('latin1');
      }
      this.#keep(held);
      if (held.length > LINE_BYTES_MAX)
        throw new InspectError('host-fault/look', 'looking into a disk: an endless line');
      if (this.#failure?.reason instanceof InspectError && this.#failure.reason.code === 'host-fault/look') return '';
      await this.#more();
    }
  }

  /** An answer of bytes. */
  async bytes(lengthMax: number): Promise<{ readonly output: Buffer; readonly isCut: boolean }> {
    const line = await this.line();
    const [, length, flag] = /^ok (\d{1,9}) ([01])$/.exec(line) ?? [];
    if (length === undefined || Number(length) > lengthMax) {
      const detail = printable(line.replace(/^error /, '') || this.words() || 'it ended', 300);
      throw new InspectError('host-fault/look', `looking into a disk: ${detail}`);
    }
    while (this.#held < Number(length)) await this.#more();
    const held = this.#take(0);
    this.#keep(held.subarray(Number(length)));
    return { output: held.subarray(0, Number(length)), isCut: flag === '1' };
  }

  #take(from: number): Buffer {
    const held =
      this.#pieces.length === 1 && this.#pieces[0] !== undefined ? this.#pieces[0] : Buffer.concat(this.#pieces);
    this.#pieces.length = 0;
    this.#held = 0;
    return held.subarray(from);
  }

  #keep(rest: Buffer): void {
    if (rest.length > 0) this.#pieces.push(rest);
    this.#held = rest.length;
  }

  #throwIfFailed(): void {
    if (this.#failure !== null) throw this.#failure.reason;
  }

  async #more(): Promise<void> {
    this.#throwIfFailed();
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    this.#wake = () => {};
    // What came before the end is still an answer.
    if (this.#held === 0) this.#throwIfFailed();
  }
}

function tooLong({ path }: Target, timeoutMs: number): InspectError {
  return new InspectError('timeout/inspect', `cannot look inside ${path}: it took longer than ${timeoutMs} ms`, {
    next: WITHOUT_A_LOOK,
  });
}

/** Why it could not be opened, from the words of the programs that tried; they may hold a host path, never a guest's bytes. */
function notReady(said: string, target: Target): InspectError {
  const { path } = target;
  const words = printable(said, 400);
  const cannot = (code: ErrorCode, why: string, next: string): InspectError =>
    new InspectError(code, `cannot look inside ${path}: ${why}`, { next });
  if (/qemu-storage-daemon is not installed/.test(words))
    return cannot('host-unfit/storage-daemon', words, 'install it: apt-get install qemu-system-common');
  if (/^reach /.test(words) || /^image: .*Permission denied/.test(words)) {
    const next = "let the VM's own user through its folders, and read it if the VM does not write it";
    return cannot('usage/disk-unreadable', `its user may not read it (${words})`, next);
  }
  if (words === 'locked' || /Failed to get .*lock/.test(words))
    return cannot('conflict/disk-in-use', 'another program has it open for writing', 'end that program first');
  if (/fuse/i.test(words)) {
    const next = 'load it: modprobe fuse; and let the user who looks open /dev/fuse';
    return cannot('host-unfit/fuse', `FUSE cannot be used (${words})`, next);
  }
  if (/^image: /.test(words)) {
    const detail = words.replace(/^image: (qemu-storage-daemon: )?(--blockdev \{.*\}: )?/, '');
    return cannot(
      'usage/disk-image',
      `QEMU does not open it${isView(target) ? '' : ` as ${target.format}`} (${detail})`,
      'correct its format in the VM spec',
    );
  }
  if (/unshare|mount|pivot_root|setpriv/.test(words)) {
    const next = 'allow user namespaces for this service: see user.max_user_namespaces';
    return cannot('host-unfit/namespaces', `no namespace can be made for it (${words})`, next);
  }
  return cannot('host-fault/look', words, 'run pratique doctor');
}
