// Reads drive images with programs that nobody here wrote: what they see is what a test compares.
import { lstat, mkdir, open, readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { runCommand } from '../../src/base/run-command.ts';
import { type IsoImage, SECTOR_BYTES } from '../../src/drive/iso9660.ts';

/** One node of an extracted tree, in a form that deepEqual shows well. */
export type Seen =
  | { readonly kind: 'file'; readonly content: string; readonly mode: number; readonly mtimeS: number }
  | { readonly kind: 'folder'; readonly mode: number; readonly mtimeS: number }
  | { readonly kind: 'symlink'; readonly target: string };
export type SeenTree = Readonly<Record<string, Seen>>;

/** The image as one plain file: metadata, then each blob at its place. */
export async function writePlainImage(
  path: string,
  iso: IsoImage,
  contentOf: (digest: string) => Uint8Array,
): Promise<void> {
  const file = await open(path, 'w');
  try {
    await file.write(iso.metadata, 0, iso.metadata.length, 0);
    for (const { startSector, source } of iso.extents) {
      const content = contentOf(source.digest);
      await file.write(content, 0, content.length, startSector * SECTOR_BYTES);
    }
    await file.truncate(iso.totalSectors * SECTOR_BYTES);
  } finally {
    await file.close();
  }
}

export type ImageReader = 'bsdtar' | 'xorriso' | 'bsdtar-joliet' | 'xorriso-joliet' | '7z';

/** Extracts the whole image into a new folder and returns what is there, by path. */
export async function extractImage(reader: ImageReader, image: string, folder: string): Promise<SeenTree> {
  await mkdir(folder);
  await runCommand(extractCommand(reader, image, folder), { env: { ...process.env, LC_ALL: 'C.UTF-8', TZ: 'UTC' } });
  return await lookAt(folder);
}

function extractCommand(reader: ImageReader, image: string, folder: string): string[] {
  const xorriso = (readAs: string) => [
    ...['xorriso', '-abort_on', 'SORRY', '-read_fs', readAs, '-osirrox', 'on', '-indev', image],
    ...['-extract', '/', folder],
  ];
  switch (reader) {
    // -P because bsdtar takes a leading backslash or `c:` for Windows' and drops it.
    case 'bsdtar':
      return ['bsdtar', '-xpPf', image, '-C', folder];
    case 'bsdtar-joliet':
      return ['bsdtar', '-xpPf', image, '--options', 'iso9660:!rockridge', '-C', folder];
    case 'xorriso':
      return xorriso('nojoliet');
    case 'xorriso-joliet':
      return xorriso('norock');
    case '7z':
      return ['7z', 'x', '-y', `-o${folder}`, image];
    default:
      return reader satisfies never;
  }
}

/** The tree under a folder, without the folder itself: extractors leave that as it was. */
export async function lookAt(folder: string): Promise<SeenTree> {
  const seen: Record<string, Seen> = {};
  const pending = (await readdir(folder)).map((name) => `/${name}`);
  for (const path of pending) {
    const full = join(folder, path);
    const stat = await lstat(full);
    const common = { mode: stat.mode & 0o7777, mtimeS: Math.floor(stat.mtimeMs / 1000) };
    if (stat.isSymbolicLink()) {
      seen[path] = { kind: 'symlink', target: await readlink(full) };
    } else if (stat.isDirectory()) {
      seen[path] = { kind: 'folder', ...common };
      for (const name of await readdir(full)) pending.push(`${path}/${name}`);
    } else {
      seen[path] = { kind: 'file', content: (await readFile(full)).toString('latin1'), ...common };
    }
  }
  return seen;
}

/** The lines that `isoinfo -f` prints: every path of the image, with Rock Ridge or Joliet names. */
export async function listImage(names: 'rock-ridge' | 'joliet' | 'plain', image: string): Promise<string[]> {
  const flags = { 'rock-ridge': ['-R'], joliet: ['-J'], plain: [] }[names];
  const said = await runCommand(['isoinfo', ...flags, '-f', '-i', image]);
  return said.split('\n').filter((line) => line !== '');
}
