// A real Debian archive in a folder: real packages by dpkg-deb, real signatures by gpg with throw-away keys.
import { mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { digestOf } from '../../src/base/digest.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';

export type PackageSpec = {
  readonly name: string;
  readonly version: string;
  readonly arch?: string;
  /** More control fields, for example Depends. */
  readonly fields?: Readonly<Record<string, string>>;
};

export type SuiteSpec = {
  readonly suite: string;
  readonly packages: readonly PackageSpec[];
  readonly date: string;
  readonly validUntil?: string;
  /** What the Release says it is, where that differs from where it lies. */
  readonly codename?: string;
  readonly byHash?: boolean;
  readonly compression?: 'xz' | 'gzip' | 'none';
  /** Changes the text of the index before it is hashed and signed. */
  readonly editIndex?: (text: string) => string;
  /** Which keys sign; the archive's first one by default. */
  readonly signers?: readonly string[];
};

export type DebianArchive = {
  readonly folder: string;
  /** Binary keyring with the public keys of the given makers (all by default). */
  readonly keyring: (...makers: readonly string[]) => Promise<string>;
  readonly publish: (spec: SuiteSpec) => Promise<void>;
  /** The path of a suite's file. */
  readonly path: (suite: string, name: string) => string;
  readonly fingerprint: (maker: string) => Promise<string>;
  readonly close: () => Promise<void>;
};

async function buildPackage(folder: string, spec: PackageSpec): Promise<string> {
  const arch = spec.arch ?? 'amd64';
  const filename = `pool/main/${spec.name}_${spec.version.replace(/^\d+:/, '')}_${arch}.deb`;
  const tree = join(folder, '..', 'tree');
  await rm(tree, { recursive: true, force: true });
  await mkdir(join(tree, 'DEBIAN'), { recursive: true });
  const fields = { Package: spec.name, Version: spec.version, Architecture: arch, ...spec.fields };
  const control = Object.entries({
    ...fields,
    Maintainer: 'Nobody <nobody@example.org>',
    Description: `Test ${spec.name}`,
  })
    .map(([name, value]) => `${name}: ${value}\n`)
    .join('');
  await writeFile(join(tree, 'DEBIAN', 'control'), control);
  await mkdir(dirname(join(folder, filename)), { recursive: true });
  // Equal packages have equal bytes, whenever they are built.
  const env = { ...process.env, SOURCE_DATE_EPOCH: '1767225600' };
  const build = ['dpkg-deb', '--root-owner-group', '-Znone', '--build', tree, join(folder, filename)];
  await runCommand(build, { env });
  const bytes = await readFile(join(folder, filename));
  return `${control}Filename: ${filename}\nSize: ${bytes.length}\nSHA256: ${digestOf(bytes)}\n`;
}

async function packed(text: string, compression: SuiteSpec['compression'], scratch: string) {
  const plain = Buffer.from(text);
  if (compression === 'none') return { suffix: '', bytes: plain };
  if (compression === 'gzip') return { suffix: '.gz', bytes: gzipSync(plain) };
  const path = join(scratch, 'Packages');
  await writeFile(path, plain);
  await runCommand(['xz', '--force', '--keep', path]);
  return { suffix: '.xz', bytes: await readFile(`${path}.xz`) };
}

/** Makes an empty archive below the folder, with one key per maker. */
export async function makeDebianArchive(root: string, makers: readonly string[] = ['archive']): Promise<DebianArchive> {
  const [folder, home] = [join(root, 'archive'), join(root, 'gnupg')];
  await mkdir(folder, { recursive: true });
  await mkdir(home, { mode: 0o700 });
  const gpg = (...args: string[]): Promise<string> =>
    runCommand([
      'gpg',
      '--homedir',
      home,
      '--batch',
      '--yes',
      '--passphrase',
      '',
      '--pinentry-mode',
      'loopback',
      ...args,
    ]);
  for (const maker of makers) await gpg('--quick-generate-key', `${maker}@example.org`, 'ed25519', 'sign', 'never');
  const path = (suite: string, name: string): string => join(folder, 'dists', suite, name);

  const sign = async (body: string, signers: readonly string[], target: string): Promise<void> => {
    const input = join(root, 'Release');
    await writeFile(input, body);
    const users = signers.flatMap((signer) => ['--local-user', `${signer}@example.org`]);
    await gpg('--clearsign', '--output', target, ...users, input);
  };

  return {
    folder,
    path,
    keyring: async (...only) => {
      const target = join(root, `keyring-${only.join('-') || 'all'}.gpg`);
      await gpg(
        '--output',
        target,
        '--export',
        ...(only.length === 0 ? makers : only).map((one) => `${one}@example.org`),
      );
      return target;
    },
    fingerprint: async (maker) => {
      const listing = await gpg('--with-colons', '--list-keys', `${maker}@example.org`);
      return /^fpr:+([0-9A-F]+):/m.exec(listing)?.[1] ?? '';
    },
    publish: async (spec) => {
      const stanzas: string[] = [];
      for (const one of spec.packages) stanzas.push(await buildPackage(folder, one));
      const text = (spec.editIndex ?? ((same) => same))(stanzas.join('\n'));
      const { suffix, bytes } = await packed(text, spec.compression, root);
      const indexFolder = path(spec.suite, 'main/binary-amd64');
      await rm(indexFolder, { recursive: true, force: true });
      await mkdir(join(indexFolder, 'by-hash/SHA256'), { recursive: true });
      const isByHash = spec.byHash ?? false;
      await writeFile(join(indexFolder, isByHash ? `by-hash/SHA256/${digestOf(bytes)}` : `Packages${suffix}`), bytes);
      const entries = [
        [digestOf(text), Buffer.byteLength(text), ''],
        [digestOf(bytes), bytes.length, suffix],
      ];
      const lines = [
        'Origin: Test',
        `Codename: ${spec.codename ?? spec.suite}`,
        `Date: ${spec.date}`,
        ...(spec.validUntil === undefined ? [] : [`Valid-Until: ${spec.validUntil}`]),
        `Acquire-By-Hash: ${isByHash ? 'yes' : 'no'}`,
        'SHA256:',
        ...entries.map(([digest, size, end]) => ` ${digest} ${size} main/binary-amd64/Packages${end}`),
      ];
      await sign(`${lines.join('\n')}\n`, spec.signers ?? [makers[0] ?? ''], path(spec.suite, 'InRelease'));
    },
    close: async () => {
      // gpg started an agent for its home; it ends with it.
      await tryCommand(['gpgconf', '--homedir', home, '--kill', 'gpg-agent']);
      if (await stat(root).catch(() => undefined)) await rm(root, { recursive: true, force: true });
    },
  };
}
