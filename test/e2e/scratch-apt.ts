// The machine's own apt in a folder of its own: other sources, another dpkg status, other lists; nothing of the machine is changed.
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type CommandResult, tryCommand } from '../../src/base/run-command.ts';
import type { SignedArchive } from '../../src/vendor/vendor.ts';

export type ScratchApt = {
  /** Runs `apt`, `apt-get` or `apt-cache` there; the words after the program are its arguments. */
  readonly run: (program: string, ...args: readonly string[]) => Promise<CommandResult>;
  /** Puts another dpkg status in place. */
  readonly setStatus: (text: string) => Promise<void>;
  /** Newer versions as apt sees them: `name version`, sorted. */
  readonly upgradable: () => Promise<readonly string[]>;
  /** What apt would install for these words: `name version`, sorted; throws what apt says when it would not. */
  readonly simulate: (...words: readonly string[]) => Promise<readonly string[]>;
};

export type ScratchOptions = {
  /** Holds `dists/` and `pool/`. */
  readonly archive: string;
  readonly archives: readonly Pick<SignedArchive, 'suite' | 'components'>[];
  readonly keyring: string;
  readonly arch: string;
  /** Content of a dpkg status file. */
  readonly status: string;
  /** Content of a preferences file. */
  readonly preferences?: string;
};

/** Lays out signed archives as they lie on a drive. */
export async function layOut(archives: readonly SignedArchive[], folder: string): Promise<void> {
  for (const { path, sourcePath } of archives.flatMap(({ files }) => files)) {
    await mkdir(dirname(join(folder, path)), { recursive: true });
    await cp(sourcePath, join(folder, path));
  }
}

/** Makes an apt over an archive in a folder, which has read its lists. Throws what `apt-get update` says when it fails. */
export async function makeScratchApt(folder: string, options: ScratchOptions): Promise<ScratchApt> {
  const { archive, archives, keyring, arch, status, preferences = '' } = options;
  for (const name of ['lists/partial', 'cache/archives/partial', 'none']) {
    await mkdir(join(folder, name), { recursive: true });
  }
  const lines = archives.map(
    ({ suite, components }) =>
      `deb [arch=${arch} signed-by=${keyring}] file:${archive} ${suite} ${components.join(' ')}\n`,
  );
  await writeFile(join(folder, 'sources.list'), lines.join(''));
  await writeFile(join(folder, 'status'), status);
  await writeFile(join(folder, 'preferences'), preferences);
  const settings = {
    'Dir::Etc::sourcelist': join(folder, 'sources.list'),
    'Dir::Etc::sourceparts': join(folder, 'none'),
    'Dir::Etc::preferences': join(folder, 'preferences'),
    'Dir::Etc::preferencesparts': join(folder, 'none'),
    'Dir::State': folder,
    'Dir::State::lists': join(folder, 'lists'),
    'Dir::State::status': join(folder, 'status'),
    'Dir::Cache': join(folder, 'cache'),
    'APT::Architecture': arch,
    'APT::Architectures': arch,
    'APT::Sandbox::User': 'root',
    'Acquire::Languages': 'none',
    'Debug::NoLocking': '1',
  };
  const flags = Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  const env = { ...process.env, LC_ALL: 'C', APT_CONFIG: '/dev/null' };
  const run: ScratchApt['run'] = (program, ...args) => tryCommand([program, ...flags, ...args], { env });
  const update = await run('apt-get', '--error-on=any', 'update');
  if (update.exitCode !== 0) throw new Error(`apt-get update: ${update.stdout}${update.stderr}`);
  return {
    run,
    setStatus: (text) => writeFile(join(folder, 'status'), text),
    upgradable: async () => {
      const { stdout } = await run('apt', 'list', '--upgradable');
      return [...stdout.matchAll(/^([^/\s]+)\/\S+ (\S+) \S+ \[upgradable/gm)]
        .map((line) => `${line[1]} ${line[2]}`)
        .sort();
    },
    simulate: async (...words) => {
      const result = await run('apt-get', '--simulate', '--no-remove', '--no-install-recommends', ...words);
      if (result.exitCode !== 0) throw new Error(`apt-get ${words.join(' ')}: ${result.stdout}${result.stderr}`);
      return [...result.stdout.matchAll(/^Inst (\S+) (?:\[\S+\] )?\((\S+) /gm)]
        .map((line) => `${line[1]} ${line[2]}`)
        .sort();
    },
  };
}
