// What the agent needs of the machine it runs on: one interface, implemented for QuickJS (guests) and Node (tests).
import { PratiqueError } from '../../src/base/errors.ts';

/** A failure in the guest: `word` is the stable code that travels in messages and results. */
export class AgentError extends PratiqueError {
  readonly word: string;

  constructor(word: string, message: string, cause?: unknown) {
    super(`guest-fault/${word}`, message, cause === undefined ? {} : { cause });
    this.word = word;
  }
}

/** A system call that failed, with the error's name from errno.h: ENOENT, ENOSPC, … */
export class SystemError extends AgentError {
  readonly errno: string;

  constructor(errno: string, doing: string) {
    super(errno === 'ENOSPC' || errno === 'EDQUOT' ? 'no-space' : 'io-error', `${doing}: ${errno}`);
    this.errno = errno;
  }
}

export type FileKind = 'file' | 'folder' | 'symlink' | 'other';
export type FileStat = {
  readonly kind: FileKind;
  readonly sizeBytes: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
};

/** An open file. Every method throws SystemError. */
export type OpenFile = {
  /** The kernel's number of it, for a program that writes to it. */
  readonly descriptor: number;
  /** Fills the buffer from the present position; returns the bytes read, 0 at the end. */
  readonly read: (buffer: Uint8Array<ArrayBuffer>) => number;
  /** Writes all of the bytes. */
  readonly write: (bytes: Uint8Array<ArrayBuffer>) => void;
  readonly seek: (offsetBytes: number) => void;
  /** Feeds at most `sizeMax` bytes into a digest, faster than by read; returns the bytes fed, 0 at the end. */
  readonly hashInto: (digest: DigestState, sizeMax: number) => number;
  readonly sync: () => void;
  readonly setMode: (mode: number) => void;
  readonly setOwner: (uid: number, gid: number) => void;
  readonly close: () => void;
};

/** A folder held open: `path` leads to it, whatever is renamed or linked in its place meanwhile. */
export type OpenFolder = { readonly path: string; readonly close: () => void };

/** The file system. Paths are absolute. Every method throws SystemError unless it says otherwise. */
export type Files = {
  readonly open: (path: string) => OpenFile;
  /** For reading, where others may put something else in the way: fails for anything but a plain file, and waits for nobody. */
  readonly openPlain: (path: string) => OpenFile;
  /** Makes a new file; what stood there before, other than a folder, is replaced. */
  readonly create: (path: string, mode: number) => OpenFile;
  /** Writes to what is there, as files of /proc want it. */
  readonly overwrite: (path: string, bytes: Uint8Array<ArrayBuffer>) => void;
  /** Fails for a symbolic link and for anything else that is no folder. */
  readonly openFolder: (path: string) => OpenFolder;
  /** Of the path itself, not of what a symbolic link points at; null if there is nothing. */
  readonly stat: (path: string) => FileStat | null;
  /** Names in a folder, sorted, without dots; empty if there is no such folder. */
  readonly list: (path: string) => readonly string[];
  readonly makeFolder: (path: string, mode: number) => void;
  /** Removes a file, a symbolic link or an empty folder. */
  readonly remove: (path: string) => void;
  readonly rename: (from: string, to: string) => void;
  readonly symlink: (target: string, path: string) => void;
  /** Where a symbolic link points; null if the path is none. */
  readonly readLink: (path: string) => string | null;
  readonly hardLink: (from: string, to: string) => void;
  /** Makes creations and renames in a folder survive a power cut. */
  readonly syncFolder: (path: string) => void;
  /** Makes everything below a folder survive a power cut. */
  readonly syncTree: (path: string) => void;
  readonly freeBytes: (path: string) => number;
};

export type DigestState = {
  readonly add: (bytes: Uint8Array<ArrayBuffer>) => void;
  /** 64 lower-case hex digits. */
  readonly end: () => string;
};

export type RunOptions = {
  readonly argv: readonly string[];
  readonly timeoutMs: number;
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** The output goes to this open file, of at most so many bytes, instead of being captured. */
  readonly outputFile?: { readonly file: OpenFile; readonly sizeBytesMax: number };
};
export type RunResult = {
  /** Null when the process was killed by a signal. */
  readonly exitCode: number | null;
  readonly isTimeout: boolean;
  /** The end of what it printed, output and errors together, bounded. */
  readonly output: string;
};

/** One end of the channel. Nothing here blocks. */
export type Port = {
  /** Fills the buffer; `again`: nothing there now, `closed`: the host side is closed. */
  readonly read: (buffer: Uint8Array<ArrayBuffer>) => number | 'again' | 'closed';
  /** Returns the bytes taken. */
  readonly write: (bytes: Uint8Array<ArrayBuffer>) => number | 'again' | 'closed';
  /** Calls back whenever reading is worth a try; null stops that. */
  readonly onReadable: (listener: (() => void) | null) => void;
  readonly onWritable: (listener: (() => void) | null) => void;
  /** Whether a closed port can come back by itself (a device), or has to be opened again (a socket). */
  readonly isDevice: boolean;
  readonly close: () => void;
};

export type Platform = {
  readonly files: Files;
  readonly clock: {
    readonly nowMs: () => number;
    readonly monotonicMs: () => number;
    readonly sleep: (durationMs: number) => Promise<void>;
    /** Calls back once; the returned function cancels it. */
    readonly after: (durationMs: number, callback: () => void) => () => void;
  };
  readonly startDigest: () => DigestState;
  readonly encode: (text: string) => Uint8Array<ArrayBuffer>;
  /** Invalid UTF-8 becomes U+FFFD. */
  readonly decode: (bytes: Uint8Array<ArrayBuffer>) => string;
  /** Throws SystemError if there is no such port or somebody else holds it. */
  readonly openPort: (path: string) => Port;
  /** Runs a program in a process group of its own; past its time the whole group is killed. Never throws for what the program does. */
  readonly run: (options: RunOptions) => Promise<RunResult>;
  /** Mounts a device read-only, without devices, set-uid and executables. */
  readonly mount: (device: string, folder: string, type: string) => void;
  /** `lazy`: also when something in it is still open. */
  readonly unmount: (folder: string, options: { readonly lazy: boolean }) => void;
  /** Writes back everything and resets the machine at once. */
  readonly restartMachine: () => void;
  /** Asks process 1 to end (busybox init then reboots in order). */
  readonly signalInit: () => void;
  /** Whether something accepts a connection to a TCP port of this machine's own loopback; null, or why not. */
  readonly connectLoopback: (port: number) => Promise<string | null>;
  readonly kernel: () => { readonly release: string; readonly machine: string };
  /** Replaces this process by another program under the same process id; only returns by throwing. */
  readonly replaceSelf: (path: string, args: readonly string[]) => never;
  /** Absolute path of the running executable. */
  readonly selfPath: string;
  readonly onTerminate: (listener: () => void) => void;
  /** One line for the log and the console. */
  readonly log: (line: string) => void;
  readonly exit: (code: number) => never;
};
