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
  /** Files by their paths below the root, `DEBIAN/postinst` and the like among them; programs where they begin with `#!` or are bytes. */
  readonly files?: Readonly<Record<string, string | Uint8Array>>;
};

export type SuiteSpec = {
  readonly suite: string;
  readonly packages: readonly PackageSpec[];
  readonly date: string;
  readonly validUntil?: string;
  /** What the Release says it is, where that differs from where it lies. */
  readonly codename?: string;
  /** More lines of its Release, for example `NotAutomatic: yes`. */
  readonly headers?: readonly string[];
  /** Puts packages for all architectures into an index of their own. */
  readonly indexOfAll?: boolean;
  readonly component?: string;
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
  /** The armored public keys, as text. */
  readonly armored: (...makers: readonly string[]) => Promise<string>;
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
  for (const [name, content] of Object.entries(spec.files ?? {})) {
    const isProgram = typeof content !== 'string' || content.startsWith('#!');
    await mkdir(dirname(join(tree, name)), { recursive: true });
    await writeFile(join(tree, name), content, { mode: isProgram ? 0o755 : 0o644 });
  }
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
  // The same packages are published again and again; each is built once.
  const stanzaOf = new Map<string, string>();
  const built = async (one: PackageSpec): Promise<string> => {
    const key = JSON.stringify(one);
    const stanza = stanzaOf.get(key) ?? (await buildPackage(folder, one));
    stanzaOf.set(key, stanza);
    return stanza;
  };

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
    armored: (...only) => gpg('--armor', '--export', ...only.map((one) => `${one}@example.org`)),
    fingerprint: async (maker) => {
      const listing = await gpg('--with-colons', '--list-keys', `${maker}@example.org`);
      return /^fpr:+([0-9A-F]+):/m.exec(listing)?.[1] ?? '';
    },
    publish: async (spec) => {
      const { component = 'main', indexOfAll: isSplit = false } = spec;
      const isByHash = spec.byHash ?? false;
      const stanzas = new Map<string, string[]>([
        ['amd64', []],
        ...(isSplit ? [['all', []] as [string, string[]]] : []),
      ]);
      for (const one of spec.packages) {
        const index = isSplit && one.arch === 'all' ? 'all' : 'amd64';
        stanzas.get(index)?.push(await built(one));
      }
      await rm(path(spec.suite, component), { recursive: true, force: true });
      const entries: string[] = [];
      for (const [arch, own] of stanzas) {
        const text = (spec.editIndex ?? ((same) => same))(own.join('\n'));
        const { suffix, bytes } = await packed(text, spec.compression, root);
        const indexFolder = path(spec.suite, `${component}/binary-${arch}`);
        await mkdir(join(indexFolder, 'by-hash/SHA256'), { recursive: true });
        await writeFile(join(indexFolder, isByHash ? `by-hash/SHA256/${digestOf(bytes)}` : `Packages${suffix}`), bytes);
        const plain = `${component}/binary-${arch}/Packages`;
        entries.push(` ${digestOf(text)} ${Buffer.byteLength(text)} ${plain}`);
        entries.push(` ${digestOf(bytes)} ${bytes.length} ${plain}${suffix}`);
      }
      const lines = [
        'Origin: Test',
        `Codename: ${spec.codename ?? spec.suite}`,
        `Date: ${spec.date}`,
        ...(spec.validUntil === undefined ? [] : [`Valid-Until: ${spec.validUntil}`]),
        ...(isSplit ? ['Architectures: all amd64'] : []),
        ...(spec.headers ?? []),
        `Acquire-By-Hash: ${isByHash ? 'yes' : 'no'}`,
        'SHA256:',
        ...entries,
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
