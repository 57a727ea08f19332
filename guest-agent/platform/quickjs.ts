// The platform of a real guest: QuickJS' own modules and native.c.
import * as native from 'qjs:native';
import * as os from 'qjs:os';
import * as std from 'qjs:std';
import { AGENT_PORT_ANSWER_MS } from '../../src/base/limits.ts';
import { makeOutputTail } from './output-tail.ts';
import {
  AgentError,
  type DigestState,
  type FileKind,
  type Files,
  type OpenFile,
  type Platform,
  type Port,
  type RunOptions,
  type RunResult,
  SystemError,
} from './platform.ts';

/** errno.h of Linux on every architecture we build for. */
const ERRNO_NAMES: Readonly<Record<number, string>> = {
  1: 'EPERM',
  2: 'ENOENT',
  5: 'EIO',
  6: 'ENXIO',
  11: 'EAGAIN',
  12: 'ENOMEM',
  13: 'EACCES',
  16: 'EBUSY',
  17: 'EEXIST',
  18: 'EXDEV',
  19: 'ENODEV',
  20: 'ENOTDIR',
  21: 'EISDIR',
  22: 'EINVAL',
  26: 'ETXTBSY',
  27: 'EFBIG',
  28: 'ENOSPC',
  30: 'EROFS',
  32: 'EPIPE',
  36: 'ENAMETOOLONG',
  39: 'ENOTEMPTY',
  40: 'ELOOP',
  101: 'ENETUNREACH',
  104: 'ECONNRESET',
  110: 'ETIMEDOUT',
  111: 'ECONNREFUSED',
  122: 'EDQUOT',
  123: 'ENOMEDIUM',
};
const EAGAIN = -11;
const EINTR = -4;
const SEEK_SET = 0;
/** How long a running program may go unseen if no signal tells of its end. */
const WAIT_LOOK_MS = 250;
/** How long the end of a program waits for the rest of its output, which a background process may hold open for good. */
const DRAIN_MS = 50;

function errnoName(result: number): string {
  return ERRNO_NAMES[-result] ?? `errno ${-result}`;
}

/** The result of a system call that was expected to work. */
function must(result: number, doing: string): number {
  if (result < 0) throw new SystemError(errnoName(result), doing);
  return result;
}

/** The digests made here, so that a file can feed one without its bytes passing through the script. */
const digestStates = new WeakMap<DigestState, ArrayBuffer>();

function startDigest(): DigestState {
  const state = native.sha256Start();
  const digest: DigestState = {
    add: (bytes) => native.sha256Add(state, bytes.buffer, bytes.byteOffset, bytes.byteLength),
    end: () => native.sha256End(state),
  };
  digestStates.set(digest, state);
  return digest;
}

function openFile(fd: number, path: string): OpenFile {
  return {
    descriptor: fd,
    read: (buffer) => must(os.read(fd, buffer.buffer, buffer.byteOffset, buffer.byteLength), `reading ${path}`),
    write: (bytes) => {
      for (let done = 0; done < bytes.byteLength; ) {
        const left = bytes.byteLength - done;
        done += must(os.write(fd, bytes.buffer, bytes.byteOffset + done, left), `writing ${path}`);
      }
    },
    seek: (offsetBytes) => {
      must(os.seek(fd, offsetBytes, SEEK_SET), `seeking in ${path}`);
    },
    hashInto: (digest, sizeMax) => {
      const state = digestStates.get(digest);
      if (state === undefined) throw new Error('assertion failed: the digest is not of this platform');
      return must(native.sha256AddFile(state, fd, sizeMax), `reading ${path}`);
    },
    sync: () => {
      must(native.fileSync(fd), `flushing ${path}`);
    },
    setMode: (mode) => {
      must(native.fileMode(fd, mode), `setting the mode of ${path}`);
    },
    setOwner: (uid, gid) => {
      must(native.fileOwner(fd, uid, gid), `setting the owner of ${path}`);
    },
    close: () => {
      must(os.close(fd), `closing ${path}`);
    },
  };
}

/** Runs a step with a folder or file opened for reading. */
function withOpen(path: string, doing: string, step: (fd: number) => number): void {
  const fd = must(os.open(path, os.O_RDONLY), `opening ${path}`);
  const result = step(fd);
  os.close(fd);
  must(result, `${doing} ${path}`);
}

function kindOf(mode: number): FileKind {
  const type = mode & os.S_IFMT;
  if (type === os.S_IFREG) return 'file';
  if (type === os.S_IFDIR) return 'folder';
  return type === os.S_IFLNK ? 'symlink' : 'other';
}

function isAbsent(errno: number): boolean {
  const name = ERRNO_NAMES[errno];
  return name === 'ENOENT' || name === 'ENOTDIR';
}

function stat(path: string): ReturnType<Files['stat']> {
  const [found, errno] = os.lstat(path);
  if (found !== null) {
    const { size, mode, uid, gid } = found;
    return { kind: kindOf(mode), sizeBytes: size, mode: mode & 0o7777, uid, gid };
  }
  if (isAbsent(errno)) return null;
  throw new SystemError(errnoName(-errno), `looking at ${path}`);
}

const files: Files = {
  open: (path) => openFile(must(os.open(path, os.O_RDONLY), `opening ${path}`), path),
  openPlain: (path) => openFile(must(native.openPlain(path), `opening ${path}`), path),
  create: (path, mode) => {
    // Removed first and made exclusively: a symbolic link that stands there is never followed.
    if (stat(path) !== null) must(os.remove(path), `replacing ${path}`);
    return openFile(must(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), `making ${path}`), path);
  },
  overwrite: (path, bytes) => {
    const file = openFile(must(os.open(path, os.O_WRONLY | os.O_TRUNC), `opening ${path}`), path);
    try {
      file.write(bytes);
    } finally {
      file.close();
    }
  },
  openFolder: (path) => {
    const fd = must(native.openFolder(path), `opening the folder ${path}`);
    return {
      path: `/proc/self/fd/${fd}`,
      close: () => {
        must(os.close(fd), `closing ${path}`);
      },
    };
  },
  stat,
  list: (path) => {
    const [names, errno] = os.readdir(path);
    if (errno !== 0 && !isAbsent(errno)) throw new SystemError(errnoName(-errno), `listing ${path}`);
    return names.filter((name) => name !== '.' && name !== '..').sort();
  },
  makeFolder: (path, mode) => {
    must(os.mkdir(path, mode), `making the folder ${path}`);
  },
  remove: (path) => {
    must(os.remove(path), `removing ${path}`);
  },
  rename: (from, to) => {
    must(os.rename(from, to), `renaming ${from} to ${to}`);
  },
  symlink: (target, path) => {
    must(os.symlink(target, path), `making the link ${path}`);
  },
  readLink: (path) => {
    const [target, errno] = os.readlink(path);
    return errno === 0 ? target : null;
  },
  hardLink: (from, to) => {
    must(native.hardLink(from, to), `linking ${to}`);
  },
  syncFolder: (path) => withOpen(path, 'flushing', native.fileSync),
  syncTree: (path) => withOpen(path, 'flushing', native.fileSystemSync),
  freeBytes: (path) => must(native.freeBytes(path), `asking for the free space of ${path}`),
};

function openPort(path: string): Port {
  const fd = must(native.openPort(path), `opening the port ${path}`);
  const outcome = (result: number): number | 'again' | 'closed' => {
    if (result === EAGAIN || result === EINTR) return 'again';
    return result > 0 ? result : 'closed';
  };
  return {
    isDevice: !isSocket(path),
    read: (buffer) => outcome(os.read(fd, buffer.buffer, buffer.byteOffset, buffer.byteLength)),
    write: (bytes) => outcome(os.write(fd, bytes.buffer, bytes.byteOffset, bytes.byteLength)),
    onReadable: (listener) => os.setReadHandler(fd, listener),
    onWritable: (listener) => os.setWriteHandler(fd, listener),
    close: () => {
      os.setReadHandler(fd, null);
      os.setWriteHandler(fd, null);
      os.close(fd);
    },
  };
}

function isSocket(path: string): boolean {
  const [found] = os.lstat(path);
  const S_IFSOCK = 0o140000;
  return found !== null && (found.mode & os.S_IFMT) === S_IFSOCK;
}

function environment(extra: Readonly<Record<string, string>>): readonly string[] {
  return Object.entries({ ...std.getenviron(), ...extra }).map(([name, value]) => `${name}=${value}`);
}

/** Programs that run, to be looked at when a child ends. */
const running = new Set<() => void>();

function run(options: RunOptions): Promise<RunResult> {
  return new Promise((resolve, reject) => {
    const pipe = os.pipe();
    if (pipe === null) {
      reject(new SystemError('EMFILE', `starting ${options.argv[0]}`));
      return;
    }
    const [readEnd, writeEnd] = pipe;
    const target = options.outputFile;
    const out = target === undefined ? writeEnd : target.file.descriptor;
    const limit = target?.sizeBytesMax ?? 0;
    const pid = native.spawn(options.argv, environment(options.env ?? {}), options.cwd ?? '', out, writeEnd, limit);
    os.close(writeEnd);
    if (pid < 0) {
      os.close(readEnd);
      reject(new SystemError(errnoName(pid), `starting ${options.argv[0]}`));
      return;
    }
    followProgram({ pid, readEnd, timeoutMs: options.timeoutMs, resolve });
  });
}

type Program = {
  readonly pid: number;
  readonly readEnd: number;
  readonly timeoutMs: number;
  readonly resolve: (result: RunResult) => void;
};

/** Collects output, ends the group when time is up, and answers once the program has ended. */
function followProgram({ pid, readEnd, timeoutMs, resolve }: Program): void {
  const tail = makeOutputTail(decode);
  const buffer = new Uint8Array(16_384);
  let isTimeout = false;
  let isOpen = true;
  let status: number | null = null;
  const finish = (): void => {
    if (isOpen) os.setReadHandler(readEnd, null);
    if (isOpen) os.close(readEnd);
    isOpen = false;
    os.clearTimeout(timer);
    if (status === null) return;
    const exitCode = (status & 127) === 0 ? (status >> 8) & 255 : null;
    resolve({ exitCode, isTimeout, output: tail.text() });
  };
  os.setReadHandler(readEnd, () => {
    const count = os.read(readEnd, buffer.buffer, 0, buffer.byteLength);
    if (count > 0) {
      tail.add(buffer.subarray(0, count));
      return;
    }
    os.setReadHandler(readEnd, null);
    os.close(readEnd);
    isOpen = false;
    if (status !== null) finish();
  });
  const look = (): void => {
    const [ended, how] = os.waitpid(pid, os.WNOHANG);
    if (ended !== pid) return;
    status = how;
    running.delete(look);
    stopLooking();
    os.clearTimeout(timer);
    // A background process may hold the output open for good, so its end is not waited for much longer.
    if (isOpen) timer = os.setTimeout(finish, DRAIN_MS);
    else finish();
  };
  let timer = os.setTimeout(() => {
    isTimeout = true;
    native.killGroup(pid);
  }, timeoutMs);
  running.add(look);
  const stopLooking = repeat(look, WAIT_LOOK_MS);
}

function repeat(step: () => void, intervalMs: number): () => void {
  let timer = os.setTimeout(again, intervalMs);
  function again(): void {
    timer = os.setTimeout(again, intervalMs);
    step();
  }
  return () => os.clearTimeout(timer);
}

function decode(bytes: Uint8Array<ArrayBuffer>): string {
  return native.utf8Decode(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The target of /proc/self/exe, once at the start: later it may name a file that was replaced. */
function findSelf(): string {
  const target = files.readLink('/proc/self/exe');
  if (target === null) throw new AgentError('no-proc', '/proc is not mounted; mount it before the agent starts');
  return target;
}

/** The platform of this process. Call it once. */
export function quickjsPlatform(): Platform {
  let onTerminate = (): void => std.exit(0);
  const signals = must(native.openSignals(), 'listening for signals');
  os.setReadHandler(signals, () => {
    const signal = native.readSignal(signals);
    if (signal === os.SIGCHLD) for (const look of [...running]) look();
    else if (signal > 0) onTerminate();
  });
  return {
    files,
    clock: {
      nowMs: () => Date.now(),
      monotonicMs: () => os.now(),
      sleep: (durationMs) =>
        new Promise((resolve) => {
          os.setTimeout(() => resolve(), durationMs);
        }),
      after: (durationMs, callback) => {
        const timer = os.setTimeout(callback, durationMs);
        return () => os.clearTimeout(timer);
      },
    },
    startDigest,
    encode: (text) => new Uint8Array(native.utf8Encode(text)),
    decode,
    openPort,
    run,
    mount: (device, folder, type) => {
      must(native.mountReadOnly(device, folder, type), `mounting ${device}`);
    },
    unmount: (folder, { lazy }) => {
      must(native.unmount(folder, lazy), `unmounting ${folder}`);
    },
    restartMachine: () => {
      must(native.restartMachine(), 'restarting the machine');
    },
    signalInit: () => {
      must(os.kill(1, os.SIGTERM), 'asking process 1 to restart the machine');
    },
    connectLoopback: async (port) => {
      const result = native.connectLoopback(port, false, AGENT_PORT_ANSWER_MS);
      if (result >= 0 || native.connectLoopback(port, true, AGENT_PORT_ANSWER_MS) >= 0) return null;
      return errnoName(result);
    },
    kernel: () => {
      const [release, machine] = native.kernelName();
      return { release, machine };
    },
    replaceSelf: (path, args) => {
      const result = native.replaceSelf(path, [path, ...args], environment({}));
      throw new SystemError(errnoName(result), `starting ${path}`);
    },
    selfPath: findSelf(),
    onTerminate: (listener) => {
      onTerminate = listener;
    },
    log: (line) => {
      std.err.puts(`pratique-agent: ${line}\n`);
      std.err.flush();
    },
    exit: (code) => std.exit(code),
  };
}
