// A real Debian without a VM: the agent's executable in a root folder of its own, with the guest's own apt and dpkg, no network, and a
// host at its channel that offers what the real vendor, store and drive room made.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type AgentBuild, buildAgent } from '../../guest-agent/build.ts';
import { asRootPrefix } from '../../images/as-root.ts';
import { fetchDebianBase } from '../../images/debian-base.ts';
import { unpackBase } from '../../images/guest-system.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { type Digest, digestOf, digestOfFile } from '../../src/base/digest.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { type DriveContents, makeContents } from '../../src/drive/contents.ts';
import type { DriveArchive } from '../../src/drive/drive.ts';
import type { AgentMessageOf } from '../../src/guest/messages.ts';
import type { RunId, VmId } from '../../src/model/ids.ts';
import type { PlanItem } from '../../src/model/plan.ts';
import { asRun, FakeHost, PLAN, VM } from '../fakes/guest-agent/fake-host.ts';

/** The same packages as the small Debian image: one base for both. */
const INCLUDE = ['busybox-static', 'mount', 'jq', 'libexpat1', 'unzip', 'zip'];
/** dpkg-query's own placeholders. */
const DPKG_FORMAT = ['Package', 'Version', 'Status']
  .map((field) => `\${${field}}`)
  .join(' ')
  .concat('\\n');
const INSTALL_TIMEOUT_MS = 180_000;

/** What a drive is made from: items, and where the bytes of each digest lie on this machine. */
export type Offering = {
  readonly items: readonly PlanItem[];
  readonly archives: readonly DriveArchive[];
  readonly blobs: ReadonlyMap<Digest, string>;
};

export type Installed = AgentMessageOf<'installed'>;
/** What came of an offer: the drive was refused, or each item has its result. */
export type Answer = { readonly refused: string } | { readonly installed: Installed };

export class DebianRoot {
  readonly folder: string;
  readonly agent: AgentBuild;
  #child: ChildProcess | null = null;
  #server: Server | null = null;
  #host: FakeHost | null = null;
  #runs = 0;
  #isEnding = false;

  private constructor(folder: string, agent: AgentBuild) {
    this.folder = folder;
    this.agent = agent;
  }

  /** Unpacks the base and puts the agent into it. */
  static async make(): Promise<DebianRoot> {
    const cacheFolder = defaultCacheFolder();
    await mkdir(cacheFolder, { recursive: true });
    const agent = await buildAgent({ cacheFolder, log: silentLog });
    const base = await fetchDebianBase({ include: INCLUDE, cacheFolder, log: silentLog });
    const home = await mkdtemp(join(tmpdir(), 'pratique-root-'));
    const root = new DebianRoot(join(home, 'root'), agent);
    await unpackBase(base.path, root.folder);
    for (const name of ['channel', 'drive', 'var/lib/pratique']) await mkdir(root.path(name), { recursive: true });
    await cp(agent.path, root.path('usr/sbin/pratique-agent'));
    return root;
  }

  /** A path of the guest as this machine sees it. */
  path(inside: string): string {
    return join(this.folder, inside);
  }

  /** The host of the agent's present connection. */
  get host(): FakeHost {
    assert(this.#host !== null, 'the agent is connected');
    return this.#host;
  }

  /** Starts the agent in a boot of its own: empty /run, no network but a loopback that is down, only its own processes. */
  async start(): Promise<void> {
    this.#server ??= await this.#listen();
    this.#host = null;
    const mounts = [
      `mount -t proc proc ${this.path('proc')}`,
      `mount -t tmpfs -o mode=755 tmpfs ${this.path('run')}`,
      `mount --rbind /dev ${this.path('dev')}`,
    ];
    const words = '/usr/sbin/pratique-agent --port /channel/port --drive /drive';
    const script = `${mounts.join(' && ')} && exec chroot ${this.folder} ${words}`;
    const apart = ['unshare', '--mount', '--net', '--pid', '--fork', '--kill-child', '--propagation', 'private'];
    const [program = '', ...args] = [...asRootPrefix('all'), ...apart, 'sh', '-c', script];
    this.#child = spawn(program, args, { stdio: 'ignore', env: { PATH: process.env.PATH } });
    await this.connected();
  }

  /** Waits until an agent is connected and in a session, also one that has taken the place of the one before. */
  async connected(): Promise<AgentMessageOf<'hello'>> {
    for (let tries = 0; this.#host === null; tries += 1) {
      assert(tries < 6_000, 'the agent did not connect within a minute');
      await systemClock.sleep(10);
    }
    return await this.#host.take('hello');
  }

  /** Whether another connection has taken the place of this one. */
  isReconnected(old: FakeHost): boolean {
    return this.#host !== null && this.#host !== old;
  }

  async #listen(): Promise<Server> {
    return await new Promise((resolve) => {
      const server = createServer((socket) => this.#connect(socket)).listen(this.path('channel/port'), () => {
        resolve(server);
      });
    });
  }

  #connect(socket: Socket): void {
    const host = new FakeHost((text) => socket.write(text));
    this.#host = host;
    socket.setEncoding('utf8').on('data', (text: string) => host.receive(text));
    socket.on('error', () => {}); // The agent was killed.
    socket.on('close', () => {
      if (this.#host === host && !this.#isEnding) this.#host = null;
    });
  }

  /** Ends the agent and all it started, as a power cut does. */
  async cutPower(): Promise<void> {
    const child = this.#child;
    this.#child = null;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill('SIGKILL');
    await ended;
  }

  async remove(): Promise<void> {
    this.#isEnding = true;
    await this.cutPower();
    this.#server?.close();
    await runCommand([...asRootPrefix('all'), 'rm', '-rf', dirname(this.folder)]);
  }

  /** Resident kB of the agent: the child of unshare. */
  async residentKb(): Promise<number> {
    const parent = this.#child?.pid;
    const [agent] = (await readFile(`/proc/${parent}/task/${parent}/children`, 'utf8')).split(' ');
    return Number(/^VmRSS:\s+(\d+) kB/m.exec(await readFile(`/proc/${agent}/status`, 'utf8'))?.[1]);
  }

  /** Runs a program of the guest beside the agent and returns what it prints. */
  async run(...argv: readonly string[]): Promise<string> {
    return await runCommand([...asRootPrefix('all'), 'chroot', this.folder, ...argv], {
      env: { LC_ALL: 'C', PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    });
  }

  /** `version state` of each package that dpkg knows by one of these names. */
  async versions(...names: readonly string[]): Promise<Readonly<Record<string, string>>> {
    const text = await this.run('dpkg-query', '-W', '-f', DPKG_FORMAT, ...names);
    const rows = text
      .trim()
      .split('\n')
      .map((line) => line.split(' '));
    return Object.fromEntries(rows.map(([name = '', version = '', , , state = '']) => [name, `${version} ${state}`]));
  }

  /** Writes the drive's folder as the drive room would show it, in a new run. */
  async writeDrive(offering: Offering): Promise<{ readonly run: RunId; readonly contents: DriveContents }> {
    this.#runs += 1;
    const run = asRun(String(this.#runs).padStart(32, '0'));
    const vm = VM as VmId; // VM has the form of one.
    const plan = { vm, run, items: [...offering.items], leftOut: [], vendors: [] };
    const contents = makeContents({ vm, run, plan, planDigest: PLAN, archives: offering.archives });
    const drive = this.path('drive');
    await rm(drive, { recursive: true, force: true });
    for (const entry of contents.entries) {
      assert(entry.kind === undefined || entry.kind === 'file');
      const target = join(drive, entry.path);
      await mkdir(dirname(target), { recursive: true });
      if (entry.source.kind === 'inline') await writeFile(target, entry.source.bytes);
      else await cp(offering.blobs.get(entry.source.digest) ?? '', target);
    }
    return { run, contents };
  }

  /** Makes the manifest say what the drive's files are now: what a host does whose own copies are not what the vendor signed. */
  async vouchForDrive(): Promise<Digest> {
    const path = this.path('drive/manifest.json');
    const manifest = JSON.parse(await readFile(path, 'utf8'));
    for (const file of [
      ...manifest.extraFiles,
      ...manifest.items.flatMap((item: { files: unknown[] }) => item.files),
    ]) {
      const bytes = await readFile(this.path(`drive${file.path}`));
      file.digest = digestOf(bytes);
      file.sizeBytes = bytes.length;
    }
    await writeFile(path, JSON.stringify(manifest));
    return await digestOfFile(path);
  }

  /** Offers the drive and waits for what comes of it. */
  async offer(run: RunId, manifestDigest: Digest): Promise<Answer> {
    const { host } = this;
    host.send({ type: 'offer', run, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
    const drive = await host.take('drive');
    if (drive.state === 'refused') return { refused: drive.code ?? '' };
    return { installed: await host.take('installed', INSTALL_TIMEOUT_MS) };
  }
}
