// Builds the packages: `npm run package -- --to DIR`. The host program as .deb, the guest agent as .deb and as plain tarball.
import { chmod, copyFile, cp, mkdir, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { Command } from 'commander';
import { buildAgent } from '../../guest-agent/build.ts';
import manifest from '../../package.json' with { type: 'json' };
import { systemClock } from '../../src/base/clock.ts';
import { classifyError } from '../../src/base/errors.ts';
import { type Log, makeLog } from '../../src/base/log.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import { EXIT_CODES } from '../cli/program.ts';
import { nodeFiles, writeBundle } from './bundle.ts';
import { completionScript } from './completions.ts';
import { buildDeb, type DebianPackage, PackagingError } from './deb.ts';
import { manualPages } from './manual.ts';
import { pratiqueProgram } from './program-tree.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const FILES = join(import.meta.dirname, 'files');
/** Of a demonstration: what the host does with an agent that lies. */
const FORGING_AGENT = join(ROOT, 'proxy/demo/forging-agent.ts');
const AGENT_FILES = join(ROOT, 'guest-agent/packaging');

const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' };

export type PackageOptions = {
  readonly to: string;
  /** Default: that of package.json. */
  readonly version?: string;
  readonly log: Log;
};

export type BuiltPackages = { readonly host: string; readonly agent: string; readonly agentTarball: string };

/** Builds all packages into a folder and returns their paths. Throws PackagingError. */
export async function buildPackages({ to, version = manifest.version, log }: PackageOptions): Promise<BuiltPackages> {
  const architecture = ARCHITECTURES[process.arch];
  if (architecture === undefined) {
    throw new PackagingError('host-unfit/architecture', `there are no packages for ${process.arch}`);
  }
  await mkdir(to, { recursive: true });
  const agent = await buildAgent({ log, version });
  const forging = await buildAgent({ log, version, entry: FORGING_AGENT });
  const epochS = await releaseTimeS();
  const common = { to, version, architecture, epochS, agentPath: agent.path, forgingPath: forging.path };
  log.info('building the packages');
  return {
    agent: await inScratch((staged) => packAgent(staged, common)),
    agentTarball: await inScratch((staged) => packAgentTarball(staged, common)),
    host: await inScratch((staged) => packHost(staged, common)),
  };
}

type Common = {
  readonly to: string;
  readonly version: string;
  readonly architecture: string;
  /** Every file gets this time, so that equal sources give equal packages. */
  readonly epochS: number;
  readonly agentPath: string;
  readonly forgingPath: string;
};

async function packHost(staged: string, common: Common): Promise<string> {
  const { version, architecture, epochS, agentPath, forgingPath } = common;
  const library = join(staged, 'usr/lib/pratique');
  const docs = join(staged, 'usr/share/doc/pratique');
  const { licenses } = await writeBundle(library, version);
  const node = nodeFiles();
  await place(node.executable, join(library, 'bin/node'), 0o755);
  await place(agentPath, join(library, 'built-agents/main'), 0o755);
  await place(forgingPath, join(library, 'built-agents/forging-agent'), 0o755);
  await place(join(FILES, 'pratique.sh'), join(staged, 'usr/bin/pratique'), 0o755);
  await place(join(FILES, 'pratique.service'), join(staged, 'lib/systemd/system/pratique.service'));
  await place(join(FILES, 'pratique.tmpfiles'), join(staged, 'usr/lib/tmpfiles.d/pratique.conf'));
  await place(join(FILES, 'pratique.toml'), join(staged, 'etc/pratique/pratique.toml'));
  await place(join(FILES, 'pratique.apparmor'), join(docs, 'examples/apparmor-libvirt-qemu'));
  await place(join(FILES, 'pratique.lintian-overrides'), join(staged, 'usr/share/lintian/overrides/pratique'));
  await cp(join(ROOT, 'docs'), join(docs, 'docs'), { recursive: true });
  await writeManuals(staged, version, epochS);
  await writeCompletions(staged);
  const carried = [licenses, `== node ${process.version}\n\n${await readFile(node.license, 'utf8')}`];
  await writePacked(join(docs, 'third-party-licenses.gz'), carried.join('\n\n'));
  const note =
    'Packages of npm and Node are carried along; their licenses are in third-party-licenses.gz beside this file.';
  await writeLegal(docs, { version, epochS, more: [note] });
  return await finish(staged, common, {
    name: 'pratique',
    version,
    architecture,
    section: 'admin',
    depends: [
      'libc6 (>= 2.28)',
      'libstdc++6',
      'qemu-system-common',
      `qemu-system-${architecture === 'amd64' ? 'x86' : 'arm'} (>= 1:7.2)`,
      'qemu-utils',
      'nftables',
      'iproute2',
      'mount',
      'e2fsprogs',
      'gpgv',
      'xz-utils',
    ],
    recommends: ['systemd', 'debian-archive-keyring', 'fuse3'],
    suggests: ['libvirt-daemon-system', 'mmdebstrap'],
    summary: 'gate of virtual machines: updated first, then plugged in',
    description: [
      'A VM starts with its virtual network cable unplugged. The host fetches updates and configuration, shows them to the VM as a read-only drive, and a small agent in the guest installs and confirms; only then is the cable plugged in.',
      'This package is the program of the host. The agent for guests is in pratique-agent.',
    ],
    conffiles: ['/etc/pratique/pratique.toml'],
    scripts: await scriptsOf('pratique'),
  });
}

async function packAgent(staged: string, common: Common): Promise<string> {
  const { version, architecture, epochS, agentPath } = common;
  const units = join(staged, 'lib/systemd/system');
  await place(agentPath, join(staged, 'usr/sbin/pratique-agent'), 0o755);
  for (const unit of ['pratique-agent.service', 'pratique-ready.service', 'pratique-ready.target']) {
    await place(join(AGENT_FILES, unit), join(units, unit));
  }
  const rules = '90-pratique-agent.rules';
  await place(join(AGENT_FILES, rules), join(staged, 'lib/udev/rules.d', rules));
  await place(join(FILES, 'pratique-agent.init'), join(staged, 'etc/init.d/pratique-agent'), 0o755);
  const overrides = join(staged, 'usr/share/lintian/overrides/pratique-agent');
  await place(join(FILES, 'pratique-agent.lintian-overrides'), overrides);
  const docs = join(staged, 'usr/share/doc/pratique-agent');
  await writeLegal(docs, { version, epochS, more: [] });
  const page = agentManual(version, epochS);
  await writePacked(join(staged, 'usr/share/man/man8/pratique-agent.8.gz'), page);
  return await finish(staged, common, {
    name: 'pratique-agent',
    version,
    architecture,
    section: 'admin',
    depends: [],
    summary: 'guest agent of Pratique',
    description: [
      'Runs in a virtual machine whose host runs Pratique: reports what is installed, installs what the host shows on a read-only drive, and confirms; then the host plugs the machine into its network. One static file.',
    ],
    conffiles: ['/etc/init.d/pratique-agent'],
    scripts: await scriptsOf('pratique-agent'),
  });
}

/** For guests of any other distribution: the agent, its units and the words for busybox, with a page that says where they go. */
async function packAgentTarball(
  staged: string,
  { to, version, architecture, epochS, agentPath }: Common,
): Promise<string> {
  const name = `pratique-agent-${version}-linux-${architecture}`;
  const folder = join(staged, name);
  await place(agentPath, join(folder, 'pratique-agent'), 0o755);
  for (const file of await readdir(AGENT_FILES)) await place(join(AGENT_FILES, file), join(folder, file));
  await place(join(FILES, 'pratique-agent.init'), join(folder, 'pratique-agent.init'), 0o755);
  await place(join(FILES, 'agent-tarball.md'), join(folder, 'README.md'));
  await place(join(ROOT, 'LICENSE'), join(folder, 'LICENSE'));
  await setTimes(staged, epochS);
  const path = join(to, `${name}.tar.gz`);
  const fixed = ['--sort=name', '--owner=0', '--group=0', '--numeric-owner', `--mtime=@${epochS}`];
  await runCommand(['tar', '-C', staged, ...fixed, '--use-compress-program=gzip -n', '-cf', path, name]);
  return path;
}

async function finish(staged: string, { to, epochS }: Common, about: DebianPackage): Promise<string> {
  await setTimes(staged, epochS);
  return await buildDeb(staged, about, to, epochS);
}

async function inScratch(work: (staged: string) => Promise<string>): Promise<string> {
  const scratch = await mkdtemp(join(tmpdir(), 'pratique-package-'));
  try {
    const staged = join(scratch, 'root');
    await mkdir(staged, { mode: 0o755 });
    return await work(staged);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Folders 0755 whatever the umask is, the file with its mode. */
async function place(from: string, to: string, mode = 0o644): Promise<void> {
  await mkdir(dirname(to), { recursive: true, mode: 0o755 });
  await copyFile(from, to);
  await chmod(to, mode);
}

async function writePacked(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o755 });
  // Node writes no name and no time into the header.
  await writeFile(path, gzipSync(text, { level: 9 }), { mode: 0o644 });
}

async function setTimes(folder: string, epochS: number): Promise<void> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  for (const entry of entries) {
    const path = join(entry.parentPath, entry.name);
    const isExecutable = ((await stat(path)).mode & 0o100) !== 0;
    await chmod(path, isExecutable ? 0o755 : 0o644);
    await utimes(path, epochS, epochS);
  }
}

async function scriptsOf(name: string): Promise<Readonly<Record<string, string>>> {
  const scripts = ['postinst', 'prerm', 'postrm'] as const;
  const texts = await Promise.all(
    scripts.map(async (each) => [each, await readFile(join(FILES, `${name}.${each}`), 'utf8')]),
  );
  return Object.fromEntries(texts);
}

async function writeManuals(staged: string, version: string, epochS: number): Promise<void> {
  for (const { name, section, text } of manualPages(pratiqueProgram(), EXIT_CODES, { version, day: dayOf(epochS) })) {
    await writePacked(join(staged, `usr/share/man/man${section}/${name}.${section}.gz`), text);
  }
}

async function writeCompletions(staged: string): Promise<void> {
  const tree = pratiqueProgram();
  const places = {
    bash: 'usr/share/bash-completion/completions/pratique',
    zsh: 'usr/share/zsh/vendor-completions/_pratique',
    fish: 'usr/share/fish/vendor_completions.d/pratique.fish',
  } as const;
  for (const shell of ['bash', 'zsh', 'fish'] as const) {
    const path = join(staged, places[shell]);
    await mkdir(dirname(path), { recursive: true, mode: 0o755 });
    await writeFile(path, completionScript(tree, shell), { mode: 0o644 });
  }
}

type Legal = { readonly version: string; readonly epochS: number; readonly more: readonly string[] };

async function writeLegal(docs: string, { version, epochS, more }: Legal): Promise<void> {
  await mkdir(docs, { recursive: true, mode: 0o755 });
  const head =
    'Copyright: 2026 The Pratique authors\n\nLicense: Apache-2.0\n On Debian systems: /usr/share/common-licenses/Apache-2.0';
  await writeFile(join(docs, 'copyright'), `${[head, ...more].join('\n\n')}\n`, { mode: 0o644 });
  const entry = [
    `pratique (${version}) unstable; urgency=medium`,
    '',
    '  * See CHANGELOG.md of the sources.',
    '',
    ` -- The Pratique maintainers <maintainers@pratique.invalid>  ${new Date(epochS * 1000).toUTCString().replace('GMT', '+0000')}`,
    '',
  ];
  await writePacked(join(docs, 'changelog.gz'), entry.join('\n'));
}

function agentManual(version: string, epochS: number): string {
  return [
    `.TH PRATIQUE-AGENT 8 "${dayOf(epochS)}" "pratique ${version}" "Pratique"`,
    '.SH NAME',
    'pratique-agent \\- guest agent of Pratique',
    '.SH SYNOPSIS',
    '.B pratique-agent',
    '.SH DESCRIPTION',
    'Reports to the host what is installed, installs what the host shows on a read-only drive, and confirms. It speaks over the',
    'virtio-serial port dev.pratique.agent.0 and needs no network. It is started by systemd, init or busybox and has nothing to set.',
    'It never runs a command that the host sends.',
    '.SH FILES',
    '.TP',
    '.I /run/pratique/state',
    'begins with \\(lqadmitted\\(rq once the host has plugged this machine in; pratique-ready.target waits for it.',
    '.TP',
    '.I /var/lib/pratique',
    'what was installed and when.',
    '.SH SEE ALSO',
    '\\fBpratique\\fR(1) on the host',
    '',
  ].join('\n');
}

function dayOf(epochS: number): string {
  return new Date(epochS * 1000).toISOString().slice(0, 10);
}

/** The time of the last commit, or SOURCE_DATE_EPOCH; sources without either count as made now. */
async function releaseTimeS(): Promise<number> {
  const given = Number(process.env.SOURCE_DATE_EPOCH ?? Number.NaN);
  if (Number.isSafeInteger(given)) return given;
  const { exitCode, stdout } = await tryCommand(['git', '-C', ROOT, 'log', '-1', '--format=%ct']);
  return exitCode === 0 ? Number(stdout.trim()) : Math.floor(systemClock.nowMs() / 1000);
}

if (import.meta.main) {
  const program = new Command('npm run package --')
    .description('builds the .deb of the host program, the .deb and the tarball of the guest agent')
    .option('--to <folder>', 'where the packages go', 'build/packages')
    .option('--package-version <version>', 'another version than that of package.json')
    .option('--json', 'answer with one JSON document');
  program.parse();
  const options = program.opts<{ to: string; packageVersion?: string; json?: boolean }>();
  try {
    const { to, packageVersion } = options;
    const built = await buildPackages({
      to,
      ...(packageVersion === undefined ? {} : { version: packageVersion }),
      log: makeLog('info'),
    });
    process.stdout.write(options.json === true ? `${JSON.stringify(built)}\n` : `${Object.values(built).join('\n')}\n`);
  } catch (error) {
    process.stderr.write(`${String(error instanceof Error ? error.message : error)}\n`);
    process.exitCode = classifyError(error).exitCode;
  }
}
