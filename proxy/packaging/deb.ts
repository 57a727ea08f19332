// One Debian package from a staged folder: control files, checksums, dpkg-deb. Equal input gives equal bytes.
import { chmod, mkdir, readdir, stat, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { PratiqueError } from '../../src/base/errors.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { md5OfFile } from './checksums.ts';

export class PackagingError extends PratiqueError {}

export type DebianPackage = {
  readonly name: string;
  readonly version: string;
  /** Debian's word: amd64, arm64. */
  readonly architecture: string;
  readonly section: string;
  readonly depends: readonly string[];
  readonly recommends?: readonly string[];
  readonly suggests?: readonly string[];
  /** One line. */
  readonly summary: string;
  /** Paragraphs of plain text. */
  readonly description: readonly string[];
  /** Configuration files below /etc that dpkg asks about. */
  readonly conffiles?: readonly string[];
  /** preinst, postinst, prerm, postrm: scripts of sh. */
  readonly scripts?: Readonly<Record<string, string>>;
};

const MAINTAINER = 'The Pratique maintainers <maintainers@pratique.invalid>';
const DESCRIPTION_COLUMNS = 76;

/** Builds `<name>_<version>_<architecture>.deb` in a folder from the tree at `staged` and returns its path. */
export async function buildDeb(staged: string, about: DebianPackage, to: string, epochS: number): Promise<string> {
  const control = join(staged, 'DEBIAN');
  await mkdir(control, { mode: 0o755 });
  const files = await filesBelow(staged, control);
  const sizes = await Promise.all(files.map(async (file) => (await stat(file)).size));
  const installedKiB = Math.ceil(sizes.reduce((sum, size) => sum + Math.ceil(size / 1024), 0));
  await writeFile(join(control, 'control'), controlText(about, installedKiB));
  const sums = await Promise.all(files.map(async (file) => `${await md5OfFile(file)}  ${relative(staged, file)}\n`));
  await writeFile(join(control, 'md5sums'), sums.sort(byPath).join(''));
  if (about.conffiles !== undefined) await writeFile(join(control, 'conffiles'), `${about.conffiles.join('\n')}\n`);
  for (const [name, text] of Object.entries(about.scripts ?? {})) {
    await writeFile(join(control, name), text);
    await chmod(join(control, name), 0o755);
  }
  const path = join(to, `${about.name}_${about.version}_${about.architecture}.deb`);
  await runCommand(['dpkg-deb', '--root-owner-group', '-Zxz', '-z6', '--build', staged, path], {
    env: { ...process.env, SOURCE_DATE_EPOCH: String(epochS) },
    timeoutMs: 10 * 60 * 1000,
  });
  return path;
}

function byPath(a: string, b: string): number {
  return a.slice(34) < b.slice(34) ? -1 : 1;
}

async function filesBelow(folder: string, except: string): Promise<readonly string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && !entry.parentPath.startsWith(except))
    .map((entry) => join(entry.parentPath, entry.name));
}

/** deb-control(5). */
export function controlText(about: DebianPackage, installedKiB: number): string {
  const list = (field: string, words: readonly string[] = []) =>
    words.length === 0 ? [] : [`${field}: ${words.join(', ')}`];
  const paragraphs = about.description.map((text) =>
    foldText(text)
      .map((line) => ` ${line}`)
      .join('\n'),
  );
  return [
    `Package: ${about.name}`,
    `Version: ${about.version}`,
    `Architecture: ${about.architecture}`,
    `Maintainer: ${MAINTAINER}`,
    `Installed-Size: ${installedKiB}`,
    ...list('Depends', about.depends),
    ...list('Recommends', about.recommends),
    ...list('Suggests', about.suggests),
    `Section: ${about.section}`,
    'Priority: optional',
    `Description: ${about.summary}`,
    `${paragraphs.join('\n .\n')}\n`,
  ].join('\n');
}

function foldText(text: string): readonly string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(/\s+/)) {
    const longer = line === '' ? word : `${line} ${word}`;
    if (longer.length > DESCRIPTION_COLUMNS) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  return [...lines, line];
}
