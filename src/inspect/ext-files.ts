// Files of one ext filesystem, read with debugfs: without mounting it, without writing to it.
import { randomBytes } from 'node:crypto';
import { posix } from 'node:path';
import { INSPECT_ANSWER_BYTES_MAX, INSPECT_LINK_HOPS_MAX } from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import { InspectError } from './errors.ts';
import type { DebugfsRequest, Look } from './look.ts';

export type FoundFile = {
  readonly inode: number;
  readonly kind: 'file' | 'folder' | 'link' | 'other';
  readonly sizeBytes: number;
  /** Where a link leads to, as it says. */
  readonly target: string | null;
};

/** What debugfs may be given as a path: its own quoting and splitting have no say then. */
const PLAIN_PATH = /^\/[A-Za-z0-9._+:@~,=%/-]{0,1023}$/;

/** What debugfs says of one file: a few hundred bytes, and more for each piece that it lies in. */
const STAT_BYTES = 8 * 1024;

export class ExtFiles {
  readonly #look: Pick<Look, 'debugfs'>;
  readonly #offsetBytes: DebugfsRequest['offsetBytes'];
  readonly #known = new Map<string, FoundFile | null>();

  constructor(look: Pick<Look, 'debugfs'>, offsetBytes: DebugfsRequest['offsetBytes']) {
    this.#look = look;
    this.#offsetBytes = offsetBytes;
  }

  /**
   * What these paths name, links on the way followed and the last one not; null where there is nothing, or a path of odd
   * characters. Remembered: the disk does not change, and asking for many at once costs what asking for one does.
   */
  async stat(paths: readonly string[]): Promise<readonly (FoundFile | null)[]> {
    const unknown = [...new Set(paths)].filter((path) => PLAIN_PATH.test(path) && !this.#known.has(path));
    const bytesMax = INSPECT_ANSWER_BYTES_MAX + unknown.length * STAT_BYTES;
    const answers = await this.#ask(
      unknown.map((path) => `stat "${path}"`),
      bytesMax,
    );
    for (const [index, path] of unknown.entries())
      this.#known.set(path, parseStat(answers[index]?.toString('latin1') ?? ''));
    return paths.map((path) => this.#known.get(path) ?? null);
  }

  /** Whether a path is of the characters that debugfs may be given. */
  isAskable(path: string): boolean {
    return PLAIN_PATH.test(path);
  }

  /** What a path leads to. No link leads out: all of them are taken within this filesystem. Throws InspectError in a circle. */
  async follow(path: string): Promise<FoundFile | null> {
    let at = path;
    for (let hop = 0; hop <= INSPECT_LINK_HOPS_MAX; hop += 1) {
      const [found = null] = await this.stat([at]);
      if (found === null || found.kind !== 'link') return found;
      const target = found.target ?? (await this.#readTarget(found));
      if (target === null || !PLAIN_PATH.test(`/${target}`)) return null;
      at = posix.resolve('/', posix.dirname(at), target);
    }
    throw new InspectError('guest-fault/disk-links', `the disk's ${printable(path)} is a link to a link without end`);
  }

  /** A long target lies in a block of its own. */
  async #readTarget(link: FoundFile): Promise<string | null> {
    if (link.sizeBytes > 1023) return null;
    return (await this.#cat([link.inode], link.sizeBytes))[0]?.toString('latin1') ?? null;
  }

  /** A whole file; null if there is none. Throws InspectError when it is no file, over its bound, or cannot be read to its end. */
  async read(path: string, bytesMax: number): Promise<Buffer | null> {
    const found = await this.follow(path);
    if (found === null) return null;
    if (found.kind !== 'file')
      throw new InspectError('guest-fault/disk-file', `the disk's ${printable(path)} is no file`);
    if (found.sizeBytes > bytesMax) {
      const sizes = `${found.sizeBytes} bytes, more than the ${bytesMax} that are read`;
      throw new InspectError('guest-fault/disk-file', `the disk's ${printable(path)} has ${sizes}`);
    }
    const [content] = await this.#cat([found.inode], found.sizeBytes);
    if (content !== undefined && content.length === found.sizeBytes) return content;
    throw new InspectError('guest-fault/disk-damaged', `the disk's ${printable(path)} cannot be read to its end`);
  }

  /** The first bytes of a file, however long it is; null if there is none. */
  async readHead(path: string, bytes: number): Promise<Buffer | null> {
    const found = await this.follow(path);
    if (found === null || found.kind !== 'file') return null;
    const request = { offsetBytes: this.#offsetBytes, commands: `cat <${found.inode}>\n`, bytesMax: bytes + 100 };
    const { output } = await this.#look.debugfs(request);
    // Before it stands the echo of the command.
    return output.subarray(output.indexOf(10) + 1).subarray(0, bytes);
  }

  /** Small files by their inodes, in one go; null where one is not whole. */
  async readSmall(files: readonly FoundFile[]): Promise<readonly (Buffer | null)[]> {
    const total = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const contents = await this.#cat(
      files.map(({ inode }) => inode),
      total,
    );
    return files.map(({ sizeBytes }, index) => {
      const content = contents[index];
      return content?.length === sizeBytes ? content : null;
    });
  }

  /** Names in a folder with their inodes; empty if there is no such folder. */
  async list(path: string): Promise<readonly { readonly name: string; readonly inode: number }[]> {
    const found = await this.follow(path);
    if (found === null || found.kind !== 'folder') return [];
    const [answer] = await this.#ask([`ls -p <${found.inode}>`]);
    const lines = answer?.toString('utf8').split('\n') ?? [];
    return lines.flatMap((line) => {
      // Inode, mode, owner, group, name, size; a name has no slash.
      const [, inode, name] = /^\/(\d{1,10})\/\d+\/\d+\/\d+\/([^/]+)\/\d*\/$/.exec(line) ?? [];
      return inode === undefined || name === undefined || inode === '0' ? [] : [{ name, inode: Number(inode) }];
    });
  }

  /** What inodes are. */
  async statInodes(inodes: readonly number[]): Promise<readonly (FoundFile | null)[]> {
    const answers = await this.#ask(inodes.map((inode) => `stat <${inode}>`));
    return inodes.map((_, index) => parseStat(answers[index]?.toString('latin1') ?? ''));
  }

  async #cat(inodes: readonly number[], totalBytes: number): Promise<readonly (Buffer | undefined)[]> {
    return await this.#ask(
      inodes.map((inode) => `cat <${inode}>`),
      totalBytes + INSPECT_ANSWER_BYTES_MAX,
    );
  }

  /**
   * The answers to commands, in order. Each is followed by a word that was made up after the guest wrote its disk, which
   * debugfs does not know but repeats: so no content can pass for the end of an answer.
   */
  async #ask(
    commands: readonly string[],
    bytesMax = INSPECT_ANSWER_BYTES_MAX,
  ): Promise<readonly (Buffer | undefined)[]> {
    if (commands.length === 0) return [];
    const word = randomBytes(16).toString('hex');
    const script = commands.map((command) => `${command}\nend-${word}\n`).join('');
    const { output } = await this.#look.debugfs({ offsetBytes: this.#offsetBytes, commands: script, bytesMax });
    const answers: (Buffer | undefined)[] = [];
    let at = 0;
    for (const command of commands) {
      const echo = Buffer.from(`debugfs: ${command}\n`);
      const end = output.indexOf(`debugfs: end-${word}\n`, at);
      const begins = end >= 0 && output.subarray(at, at + echo.length).equals(echo);
      answers.push(begins ? output.subarray(at + echo.length, end) : undefined);
      if (end < 0) break;
      at = end + `debugfs: end-${word}\n`.length;
    }
    if (answers.every((answer) => answer === undefined))
      throw new InspectError('guest-fault/disk-damaged', 'the filesystem on the disk is too damaged to be read');
    return answers;
  }
}

const KINDS: Readonly<Record<string, FoundFile['kind']>> = { regular: 'file', directory: 'folder', symlink: 'link' };

/** The first lines of debugfs's `stat`; null where there was nothing to be found. */
function parseStat(text: string): FoundFile | null {
  const [, inode, type] = /^Inode: (\d{1,10})\s+Type: (\w+)/.exec(text) ?? [];
  const size = /^User: [^\n]*Size: (\d{1,16})$/m.exec(text)?.[1];
  if (inode === undefined || type === undefined || size === undefined) return null;
  const target = /^Fast link dest: "([^\n]*)"$/m.exec(text)?.[1] ?? null;
  return { inode: Number(inode), kind: KINDS[type] ?? 'other', sizeBytes: Number(size), target };
}
