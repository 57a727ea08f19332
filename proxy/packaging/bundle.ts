// The program as a few files of plain JavaScript: what a package carries instead of sources and node_modules.
import { chmod, copyFile, cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

/** Files that the program reads beside its own code, by the module that asks for them: all of its code is in one folder there. */
const ASSETS = ['src/base/launch.pl', 'src/inspect/look.pl', 'proxy/demo/watch-frames.pl'] as const;
/** Folders for the demonstration's guests: from the sources, to below the package's own folder. */
const FOLDERS = [
  ['images/guest', 'lib/guest'],
  ['images/guest-systemd', 'lib/guest-systemd'],
  ['guest-agent/packaging', 'guest-agent/packaging'],
] as const;
/** CommonJS packages ask for Node's own modules by `require`. */
const BANNER =
  "import { createRequire as makeRequire } from 'node:module'; const require = makeRequire(import.meta.url);";

export type Bundle = {
  /** Licenses of what is inside, as they ask to be carried along. */
  readonly licenses: string;
};

/**
 * Writes `lib/` and `package.json` below a folder; `lib/main.js` is the program. What is written depends on the sources alone.
 */
export async function writeBundle(folder: string, version: string): Promise<Bundle> {
  const lib = join(folder, 'lib');
  await mkdir(lib, { recursive: true });
  const { metafile } = await build({
    absWorkingDir: ROOT,
    entryPoints: ['proxy/main.ts'],
    outdir: lib,
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node24',
    // Used by the demonstration only, to build the guest agent from its sources.
    external: ['esbuild'],
    legalComments: 'none',
    banner: { js: BANNER },
    metafile: true,
  });
  for (const asset of ASSETS) {
    const target = join(lib, asset.slice(asset.lastIndexOf('/') + 1));
    await copyFile(join(ROOT, asset), target);
    await chmod(target, 0o644);
  }
  for (const [from, to] of FOLDERS) await cp(join(ROOT, from), join(folder, to), { recursive: true });
  await withoutShebang(join(lib, 'main.js'));
  await cp(join(ROOT, 'proxy/pratique.schema.json'), join(folder, 'pratique.schema.json'));
  const manifest = { name: 'pratique', version, type: 'module', license: 'Apache-2.0' };
  await writeFile(join(folder, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`, { mode: 0o644 });
  return { licenses: await licensesOf(Object.keys(metafile.inputs)) };
}

/** The package's own script starts it, with the package's own Node. */
async function withoutShebang(path: string): Promise<void> {
  const text = await readFile(path, 'utf8');
  await writeFile(path, text.replace(/^#!.*\n/, ''));
}

/** The license text of each package from which something was taken. */
async function licensesOf(inputs: readonly string[]): Promise<string> {
  const folders = new Set(inputs.flatMap((input) => /^(node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(input)?.[1] ?? []));
  const texts = await Promise.all([...folders].sort().map(licenseOf));
  return texts.join('\n\n');
}

async function licenseOf(folder: string): Promise<string> {
  const { name, version, license } = await readManifest(folder);
  for (const file of ['LICENSE', 'LICENSE.md', 'LICENSE.txt', 'LICENCE', 'license']) {
    const text = await readFile(join(ROOT, folder, file), 'utf8').catch(() => null);
    if (text !== null) return `== ${name} ${version} (${license})\n\n${text.trim()}`;
  }
  return `== ${name} ${version} (${license})`;
}

async function readManifest(folder: string): Promise<{ name: string; version: string; license: string }> {
  const text = await readFile(join(ROOT, folder, 'package.json'), 'utf8');
  // The cast holds: every package that npm installed has these three.
  return JSON.parse(text) as { name: string; version: string; license: string };
}

/** Node itself, as it was installed with the project's packages, and its license. */
export function nodeFiles(): { readonly executable: string; readonly license: string } {
  const executable = process.execPath;
  return { executable, license: join(dirname(dirname(executable)), 'LICENSE') };
}
