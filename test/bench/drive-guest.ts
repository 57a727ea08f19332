// The guest of the drive bench: a kernel, the drivers of disks and one program that reads them; every way of the bench is a disk of its own.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeCpio } from '../../images/cpio.ts';
import { kernelCommandLine } from '../../images/guest-system.ts';
import type { GuestImage } from '../../images/images.ts';
import { hostArch } from '../../images/kernel.ts';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { imageNode } from '../../src/hypervisor/qmp/drive-nodes.ts';
import { parseGuestAnswer, type ReadShape } from './drive-figures.ts';
import { type DriveSite, endChild, type WayName } from './drive-site.ts';
import { NotMeasured } from './patch-site.ts';

/** Milliseconds until it answers, emulated on a busy machine. */
const BOOT_TIMEOUT_MS = 120_000;
const READ_TIMEOUT_MS = 120_000;
const MEMORY_MIB = 128;
const ANSWER_CHARS_MAX = 100_000;

export type ReadingGuest = {
  readonly pid: number;
  /** Reads a disk; the seed decides which blocks, so that all ways are asked for the same ones. */
  readonly read: (
    way: WayName,
    shape: ReadShape,
    seed: number,
  ) => Promise<{ readonly seconds: number; readonly checksum: string }>;
  readonly close: () => Promise<void>;
};

/** Boots it with all ways attached, as the product attaches a drive. Throws NotMeasured on other processors than x86-64. */
export async function startReadingGuest(options: {
  readonly site: DriveSite;
  readonly image: GuestImage;
  readonly accelerator: string;
}): Promise<ReadingGuest> {
  if (hostArch() !== 'amd64')
    throw new NotMeasured('the guest of this bench is made for x86-64', 'run it on such a machine');
  const { site, image, accelerator } = options;
  const initrd = await makeInitrd(site.folder, image);
  const [program = '', ...args] = commandLine({ site, image, initrd, accelerator });
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  const answers = collectLines(child);
  try {
    const { pid } = child;
    const isReady = await waitUntil(
      async () => answers.ended() || answers.take('ready') !== null,
      systemClock,
      BOOT_TIMEOUT_MS,
    );
    if (!isReady || answers.ended() || pid === undefined) throw new Error(`the guest did not start: ${answers.said()}`);
    const disks = new Map(site.ways.map((way, index) => [way.name, `vd${String.fromCharCode(97 + index)}`]));
    return {
      pid,
      read: async (way, shape, seed) => {
        const { blockBytes, depth, count, isRandom } = shape;
        child.stdin.write(`read ${disks.get(way)} ${blockBytes} ${depth} ${count} ${isRandom ? seed : 0}\n`);
        return parseGuestAnswer(await answers.next(READ_TIMEOUT_MS));
      },
      close: async () => await endChild(child),
    };
  } catch (error) {
    await endChild(child);
    throw error;
  }
}

/** The image's own initramfs, with the reader and another first program laid over it. */
async function makeInitrd(folder: string, image: GuestImage): Promise<string> {
  const here = import.meta.dirname;
  const reader = join(folder, 'drive-guest');
  const compile = ['musl-gcc', '-static', '-Os', '-o', reader, join(here, 'drive-guest.c')];
  await runCommand(compile, { purpose: "compiling the guest's reader" });
  const over = makeCpio([
    { kind: 'program', path: 'init', content: await readFile(join(here, 'drive-guest-init')) },
    { kind: 'program', path: 'drive-guest', content: await readFile(reader) },
  ]);
  const path = join(folder, 'initrd');
  await writeFile(path, Buffer.concat([await readFile(image.initrd), over]));
  return path;
}

function commandLine(parts: {
  readonly site: DriveSite;
  readonly image: GuestImage;
  readonly initrd: string;
  readonly accelerator: string;
}): readonly string[] {
  const { site, image, initrd, accelerator } = parts;
  const words = kernelCommandLine()
    .split(' ')
    .filter((word) => !word.startsWith('console='));
  const disks = site.ways.flatMap(({ source }, index) => {
    // The product's own node, and the raw one over it by which it can take the image away.
    const front = { driver: 'raw', 'node-name': `front${index}`, 'read-only': true, file: `image${index}` };
    const device = { driver: 'virtio-blk-pci', drive: `front${index}` };
    return [
      ...['-blockdev', JSON.stringify(imageNode(`image${index}`, source))],
      ...['-blockdev', JSON.stringify(front), '-device', JSON.stringify(device)],
    ];
  });
  return [
    ...['qemu-system-x86_64', '-nodefaults', '-no-user-config', '-display', 'none', '-monitor', 'none'],
    ...['-machine', 'q35,usb=off', '-accel', accelerator, '-cpu', accelerator === 'kvm' ? 'host' : 'max'],
    ...['-m', String(MEMORY_MIB), '-smp', '1', '-serial', 'stdio'],
    ...['-kernel', image.kernel, '-initrd', initrd, '-append', words.join(' ')],
    ...disks,
  ];
}

/** What a program says, line by line; the first ones may come before anybody waits for them. */
function collectLines(child: ChildProcessWithoutNullStreams) {
  const lines: string[] = [];
  let text = '';
  let errors = '';
  child.stdout.on('data', (piece: Buffer) => {
    text = (text + piece.toString('utf8')).slice(-ANSWER_CHARS_MAX);
    const whole = text.split('\n');
    text = whole.pop() ?? '';
    lines.push(...whole.map((line) => line.trim()));
  });
  child.stderr.on('data', (piece: Buffer) => {
    errors = (errors + piece.toString('utf8')).slice(-ANSWER_CHARS_MAX);
  });
  child.stdin.on('error', () => {}); // EPIPE: it has ended; whoever waits for an answer is told.
  const said = () => `${errors} ${lines.join(' / ')} ${text}`.trim().slice(-600);
  const ended = () => child.exitCode !== null || child.signalCode !== null;
  return {
    said,
    ended,
    /** Takes a line that is there, and everything before it. */
    take: (wanted: string): string | null => {
      const index = lines.indexOf(wanted);
      if (index < 0) return null;
      return lines.splice(0, index + 1).at(-1) ?? null;
    },
    next: async (timeoutMs: number): Promise<string> => {
      await waitUntil(async () => lines.length > 0 || ended(), systemClock, timeoutMs, 2);
      const line = lines.shift();
      if (line === undefined) throw new Error(`the guest did not answer: ${said()}`);
      return line;
    },
  };
}
