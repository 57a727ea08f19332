// The platform on Node, for unit tests and scripted agents. It cannot mount, restart the machine or replace itself.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  fchownSync,
  fstatSync,
  fsyncSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  renameSync,
  rmdirSync,
  type Stats,
  statfsSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { connect } from 'node:net';
import { release } from 'node:os';
import { makeOutputTail } from './output-tail.ts';
import {
  AgentError,
  type DigestState,
  type FileStat,
  type Files,
  type OpenFile,
  type OpenFolder,
  type Platform,
  type RunOptions,
  type RunResult,
  SystemError,
} from './platform.ts';

/** Milliseconds the end of a program waits for the rest of its output. */
const DRAIN_MS = 50;

/** Runs a step of node:fs and turns its errors into ours. */
function system<T>(doing: string, step: () => T): T {
  try {
    return step();
  } catch (error) {
    throw new SystemError(errnoOf(error), doing);
  }
}

function errnoOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : 'EIO';
}

function decode(bytes: Uint8Array<ArrayBuffer>): string {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
}

function startDigest(): DigestState {
  const hash = createHash('sha256');
  return { add: (bytes) => hash.update(bytes), end: () => hash.digest('hex') };
}

function openFile(fd: number, path: string): OpenFile {
  let position = 0;
  const read = (buffer: Uint8Array<ArrayBuffer>): number => {
    const count = system(`reading ${path}`, () => readSync(fd, buffer, 0, buffer.length, position));
    position += count;
    return count;
  };
  return {
    descriptor: fd,
    read,
    write: (bytes) => {
      for (let done = 0; done < bytes.length; ) {
        done += system(`writing ${path}`, () => writeSync(fd, bytes, done, bytes.length - done));
      }
    },
    seek: (offsetBytes) => {
      position = offsetBytes;
    },
    hashInto: (digest, sizeMax) => {
      const buffer = new Uint8Array(Math.min(sizeMax, 65_536));
      const count = read(buffer);
      digest.add(buffer.subarray(0, count));
      return count;
    },
    sync: () => system(`flushing ${path}`, () => fsyncSync(fd)),
    setMode: (mode) => system(`setting the mode of ${path}`, () => fchmodSync(fd, mode)),
    setOwner: (uid, gid) => system(`setting the owner of ${path}`, () => fchownSync(fd, uid, gid)),
    close: () => system(`closing ${path}`, () => closeSync(fd)),
  };
}

function openFolder(path: string): OpenFolder {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
  const fd = system(`opening the folder ${path}`, () => openSync(path, flags));
  return { path: `/proc/self/fd/${fd}`, close: () => system(`closing ${path}`, () => closeSync(fd)) };
}

function kindOf(found: Stats): FileStat['kind'] {
  if (found.isFile()) return 'file';
  if (found.isDirectory()) return 'folder';
  return found.isSymbolicLink() ? 'symlink' : 'other';
}

function stat(path: string): FileStat | null {
  try {
    const found = lstatSync(path);
    const { size, mode, uid, gid } = found;
    return { kind: kindOf(found), sizeBytes: size, mode: mode & 0o7777, uid, gid };
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === 'ENOENT' || errno === 'ENOTDIR') return null;
    throw new SystemError(errno, `looking at ${path}`);
  }
}

function syncPath(path: string): void {
  system(`flushing ${path}`, () => {
    const fd = openSync(path, 'r');
    fsyncSync(fd);
    closeSync(fd);
  });
}

function syncTree(path: string): void {
  for (const name of readdirSync(path)) {
    const child = `${path}/${name}`;
    const kind = stat(child)?.kind;
    if (kind === 'folder') syncTree(child);
    else if (kind === 'file') syncPath(child);
  }
  syncPath(path);
}

function remove(path: string): void {
  system(`removing ${path}`, () => (lstatSync(path).isDirectory() ? rmdirSync(path) : unlinkSync(path)));
}

const files: Files = {
  open: (path) =>
    openFile(
      system(`opening ${path}`, () => openSync(path, 'r')),
      path,
    ),
  openPlain: (path) => {
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
    const fd = system(`opening ${path}`, () => openSync(path, flags));
    if (fstatSync(fd).isFile()) return openFile(fd, path);
    closeSync(fd);
    throw new SystemError('EINVAL', `opening ${path}`);
  },
  create: (path, mode) => {
    if (stat(path) !== null) remove(path);
    return openFile(
      system(`making ${path}`, () => openSync(path, 'wx', mode)),
      path,
    );
  },
  overwrite: (path, bytes) =>
    system(`writing ${path}`, () => {
      truncateSync(path);
      writeFileSync(path, bytes, { flag: 'r+' });
    }),
  openFolder,
  stat,
  list: (path) => system(`listing ${path}`, () => (existsSync(path) ? readdirSync(path).sort() : [])),
  makeFolder: (path, mode) => {
    system(`making the folder ${path}`, () => mkdirSync(path, mode));
  },
  remove,
  rename: (from, to) => system(`renaming ${from} to ${to}`, () => renameSync(from, to)),
  symlink: (target, path) => system(`making the link ${path}`, () => symlinkSync(target, path)),
  readLink: (path) =>
    stat(path)?.kind === 'symlink' ? system(`reading the link ${path}`, () => readlinkSync(path)) : null,
  hardLink: (from, to) => system(`linking ${to}`, () => linkSync(from, to)),
  syncFolder: syncPath,
  syncTree,
  freeBytes: (path) =>
    system(`asking for the free space of ${path}`, () => {
      const fs = statfsSync(path);
      return fs.bavail * fs.bsize;
    }),
};

function run(clock: Platform['clock'], options: RunOptions): Promise<RunResult> {
  const [program, ...args] = options.argv;
  if (program === undefined) throw new Error('assertion failed: a process needs a program');
  const out = options.outputFile === undefined ? 'pipe' : options.outputFile.file.descriptor;
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      detached: true,
      stdio: ['ignore', out, 'pipe'],
      env: { ...process.env, ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    const tail = makeOutputTail(decode);
    let isTimeout = false;
    const keep = (bytes: Buffer): void => tail.add(new Uint8Array(bytes));
    child.stdout?.on('data', keep);
    child.stderr?.on('data', keep);
    child.on('error', (error) => reject(new SystemError(errnoOf(error), `starting ${program}`)));
    const cancel = clock.after(options.timeoutMs, () => {
      isTimeout = true;
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    });
    const finish = (exitCode: number | null): void => resolve({ exitCode, isTimeout, output: tail.text() });
    child.on('close', finish);
    child.on('exit', (exitCode) => {
      cancel();
      // A background process may hold the output open for good.
      void clock.sleep(DRAIN_MS).then(() => finish(exitCode));
    });
  });
}

function connectLoopback(port: number): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('connect', () => {
      socket.destroy();
      resolve(null);
    });
    socket.on('error', (error) => resolve(errnoOf(error)));
  });
}

/** The platform of this Node process, on the given clock; tests replace what they need to. */
export function nodePlatform(clock: Platform['clock']): Platform {
  const unfit = (what: string): never => {
    throw new AgentError('unfit-platform', `${what} needs a real guest`);
  };
  return {
    files,
    clock,
    startDigest,
    encode: (text) => new Uint8Array(Buffer.from(text)),
    decode,
    openPort: () => unfit('opening a port'),
    run: (options) => run(clock, options),
    mount: () => unfit('mounting'),
    unmount: () => unfit('unmounting'),
    restartMachine: () => unfit('restarting the machine'),
    signalInit: () => unfit('restarting the machine'),
    connectLoopback,
    kernel: () => ({ release: release(), machine: process.arch === 'arm64' ? 'aarch64' : 'x86_64' }),
    replaceSelf: () => unfit('replacing the agent'),
    selfPath: process.execPath,
    onTerminate: () => {},
    log: () => {},
    exit: (code) => unfit(`exit ${code}`),
  };
}
