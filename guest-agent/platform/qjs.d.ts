// Types of the QuickJS modules the agent uses. The prefix keeps them apart from Node's modules; the build removes it.
declare module 'qjs:std' {
  export function exit(code: number): never;
  export function gc(): void;
  export function getenviron(): Record<string, string>;
  type File = { puts(text: string): void; flush(): void };
  export const err: File;
  export const out: File;
}
declare module 'qjs:os' {
  export const O_RDONLY: number;
  export const O_WRONLY: number;
  export const O_CREAT: number;
  export const O_TRUNC: number;
  export const O_EXCL: number;
  export const S_IFMT: number;
  export const S_IFREG: number;
  export const S_IFDIR: number;
  export const S_IFLNK: number;
  export const SIGTERM: number;
  export const SIGCHLD: number;
  export const WNOHANG: number;
  type Stat = { readonly size: number; readonly mode: number; readonly uid: number; readonly gid: number };
  export function open(path: string, flags: number, mode?: number): number;
  export function close(fd: number): number;
  export function seek(fd: number, offset: number, whence: number): number;
  export function read(fd: number, buffer: ArrayBuffer, offset: number, length: number): number;
  export function write(fd: number, buffer: ArrayBuffer, offset: number, length: number): number;
  export function remove(path: string): number;
  export function rename(from: string, to: string): number;
  export function mkdir(path: string, mode: number): number;
  export function readdir(path: string): [string[], number];
  export function lstat(path: string): [Stat | null, number];
  export function symlink(target: string, path: string): number;
  export function readlink(path: string): [string, number];
  export function pipe(): [number, number] | null;
  export function waitpid(pid: number, options: number): [number, number];
  export function kill(pid: number, signal: number): number;
  export function setReadHandler(fd: number, handler: (() => void) | null): void;
  export function setWriteHandler(fd: number, handler: (() => void) | null): void;
  export function setTimeout(callback: () => void, delayMs: number): object;
  export function clearTimeout(timer: object): void;
  export function now(): number;
}
declare module 'qjs:native' {
  export function sha256Start(): ArrayBuffer;
  export function sha256Add(state: ArrayBuffer, buffer: ArrayBuffer, offset: number, length: number): void;
  export function sha256AddFile(state: ArrayBuffer, fd: number, sizeMax: number): number;
  export function sha256End(state: ArrayBuffer): string;
  export function utf8Encode(text: string): ArrayBuffer;
  export function utf8Decode(buffer: ArrayBuffer, offset: number, length: number): string;
  export function fileSync(fd: number): number;
  export function fileSystemSync(fd: number): number;
  export function syncAll(): void;
  export function fileMode(fd: number, mode: number): number;
  export function fileOwner(fd: number, uid: number, gid: number): number;
  export function openFolder(path: string): number;
  export function openPlain(path: string): number;
  export function hardLink(from: string, to: string): number;
  export function freeBytes(path: string): number;
  export function mountReadOnly(device: string, folder: string, type: string): number;
  export function unmount(folder: string, isLazy: boolean): number;
  export function restartMachine(): number;
  export function kernelName(): [string, string];
  export function openPort(path: string): number;
  export function connectLoopback(port: number, isV6: boolean, waitMs: number): number;
  export function openSignals(): number;
  export function readSignal(fd: number): number;
  export function spawn(
    argv: readonly string[],
    env: readonly string[],
    cwd: string,
    outFd: number,
    errFd: number,
    fileBytesMax: number,
  ): number;
  export function killGroup(pid: number): number;
  export function replaceSelf(path: string, argv: readonly string[], env: readonly string[]): number;
}
/** The program's own words, the executable's name first. */
declare const scriptArgs: readonly string[];
