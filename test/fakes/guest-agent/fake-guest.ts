// A whole guest for unit tests: a folder with /proc, /sys, drives and state, an agent on Node in it, and a host at its port.
import { randomUUID } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startAgent } from '../../../guest-agent/agent.ts';
import { GUEST_PATHS, type Paths } from '../../../guest-agent/paths.ts';
import { nodePlatform } from '../../../guest-agent/platform/node.ts';
import { type Platform, SystemError } from '../../../guest-agent/platform/platform.ts';
import { systemClock } from '../../../src/base/clock.ts';
import type { Digest } from '../../../src/base/digest-text.ts';
import type { Inventory } from '../../../src/model/inventory.ts';
import type { Manifest } from '../../../src/model/manifest.ts';
import { type DriveItem, makeTar, writeDrive } from './fake-bundle.ts';
import { FakeHost, PLAN, RUN } from './fake-host.ts';
import { FakePort } from './fake-port.ts';
import { PowerCut, PowerSupply } from './power-supply.ts';

/** The agent's milliseconds pass this much faster than ours. */
const TIME_FACTOR = 25;

const INSTALL_ENTRY = '#!/bin/sh\necho "$PRATIQUE_VERSION after $PRATIQUE_PREVIOUS" >told\n';
const CHECK_ENTRY = '#!/bin/sh\ntest "$(cat version)" = "$PRATIQUE_VERSION"\n';

export class FakeGuest {
  readonly folder = mkdtempSync(join(tmpdir(), 'pratique-guest-'));
  readonly paths: Paths;
  host!: FakeHost;
  port!: FakePort;
  power = new PowerSupply();
  boot = '';
  /** What the agent did to the machine: mounts, restarts, its end. */
  readonly deeds: string[] = [];
  readonly log: string[] = [];
  /** Replaces parts of the platform of the next start. */
  overrides: Partial<Platform> = {};
  #terminate = (): void => {};

  constructor() {
    const inside = (path: string): string => join(this.folder, path);
    this.paths = {
      ...GUEST_PATHS,
      state: inside('state'),
      runtime: inside('run/pratique'),
      proc: inside('proc'),
      sys: inside('sys'),
      dev: inside('dev'),
      etc: inside('etc'),
      dpkg: inside('dpkg'),
      installRoot: this.folder,
      programs: [inside('bin')],
      policy: inside('policy-rc.d'),
    };
    for (const path of ['proc/sys/kernel/random', 'proc/1', 'sys/block', 'dev', 'etc', 'dpkg', 'bin', 'run', 'opt']) {
      mkdirSync(inside(path), { recursive: true });
    }
    writeFileSync(inside('etc/os-release'), 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n');
    // Only these: a test must never reach this machine's own apt or dpkg.
    for (const name of ['cat', 'cp', 'gzip', 'sleep']) symlinkSync(`/bin/${name}`, inside(`bin/${name}`));
    writeFileSync(inside('bin/self'), 'the running agent');
    this.newBoot();
  }

  remove(): void {
    this.cutPower();
    rmSync(this.folder, { recursive: true, force: true });
  }

  newBoot(): void {
    this.boot = randomUUID();
    writeFileSync(join(this.folder, 'proc/sys/kernel/random/boot_id'), `${this.boot}\n`);
  }

  /** Ends the agent without a word. */
  cutPower(): void {
    this.power.isOff = true;
  }

  /** A block device with the given label; its files are those of the folder. */
  attachDrive(device: string, label = 'PRATIQUE'): string {
    const content = join(this.folder, `drive-${device}`);
    mkdirSync(content, { recursive: true });
    mkdirSync(join(this.folder, 'sys/block', device), { recursive: true });
    writeFileSync(join(this.folder, 'sys/block', device, 'size'), '2048\n');
    const image = Buffer.alloc(34 * 1024);
    image.write(`\u0001CD001\u0001\u0000${' '.repeat(32)}${label.padEnd(32)}`, 32_768, 'latin1');
    writeFileSync(join(this.paths.dev, device), image);
    return content;
  }

  detachDrive(device: string): void {
    rmSync(join(this.folder, 'sys/block', device), { recursive: true });
    rmSync(join(this.paths.dev, device));
  }

  /** Starts an agent with a host at its port. */
  start(): void {
    const power = this.power.isOff ? new PowerSupply() : this.power;
    this.power = power;
    const host = new FakeHost((text) => port.give(text));
    const port = new FakePort(
      (text) => host.receive(text),
      () => !power.isOff,
    );
    this.host = host;
    this.port = port;
    startAgent({
      platform: this.#platform(power, port),
      paths: this.paths,
      version: '0.1.0',
      port: '/dev/test',
      args: ['--test'],
    });
  }

  /** Starts an agent and waits until it has a session. */
  async started(): Promise<void> {
    this.start();
    await this.host.take('hello');
  }

  /** A bundle whose install entry notes what it was told, and whose check looks at its version. */
  app(version: string, scripts: { readonly check?: string; readonly install?: string } = {}): DriveItem {
    const prefix = join(this.folder, 'opt/app');
    const install = { action: 'bundle', prefix, compression: 'none', install: 'install', check: 'check' } as const;
    const content = makeTar([
      { name: 'version', content: version, mode: 0o644 },
      { name: 'install', content: scripts.install ?? INSTALL_ENTRY },
      { name: 'check', content: scripts.check ?? CHECK_ENTRY },
    ]);
    return { item: { product: 'app', version, install }, content };
  }

  /** Installs the app as a guest image comes with it. */
  seedApp(version: string): void {
    const prefix = join(this.folder, 'opt/app');
    mkdirSync(join(prefix, 'versions', version), { recursive: true });
    writeFileSync(join(prefix, 'versions', version, 'version'), version);
    symlinkSync(`versions/${version}`, join(prefix, 'current'));
    mkdirSync(join(this.paths.state, 'products'), { recursive: true });
    const record = { product: 'app', version, prefix, digest: 'a'.repeat(64) };
    writeFileSync(join(this.paths.state, 'products/app.json'), JSON.stringify(record));
  }

  appVersion(): string {
    return readFileSync(join(this.folder, 'opt/app/current/version'), 'utf8');
  }

  /** Offers a drive with these items and returns the manifest's digest. */
  offer(items: readonly DriveItem[], overrides: Partial<Manifest> = {}): Digest {
    const { manifestDigest } = writeDrive(this.attachDrive('vdb'), items, overrides);
    this.offerManifest(manifestDigest);
    return manifestDigest;
  }

  offerManifest(manifestDigest: Digest, label = 'PRATIQUE'): void {
    this.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label });
  }

  async inventory(): Promise<Inventory> {
    this.host.send({ type: 'ask-inventory' });
    return (await this.host.take('inventory')).inventory;
  }

  /** What the agent reports, as `product version state`. */
  async products(): Promise<readonly string[]> {
    const { products } = await this.inventory();
    return products.map(({ product, version, state }) => `${product} ${version} ${state}`);
  }

  terminate(): void {
    this.#terminate();
  }

  #platform(power: PowerSupply, port: FakePort): Platform {
    const node = nodePlatform(systemClock);
    const whilePowered =
      (step: () => void): (() => void) =>
      () => {
        if (power.isOff) return;
        try {
          step();
        } catch (error) {
          if (!(error instanceof PowerCut)) throw error;
        }
      };
    return {
      ...node,
      files: power.wrap(node.files),
      clock: {
        nowMs: systemClock.nowMs,
        monotonicMs: () => systemClock.monotonicMs() * TIME_FACTOR,
        sleep: async (durationMs) => {
          await systemClock.sleep(durationMs / TIME_FACTOR);
          power.demand();
        },
        after: (durationMs, callback) => systemClock.after(durationMs / TIME_FACTOR, whilePowered(callback)),
      },
      openPort: () => ({
        ...port.port,
        onReadable: (listener) => port.port.onReadable(listener === null ? null : whilePowered(listener)),
        onWritable: (listener) => port.port.onWritable(listener === null ? null : whilePowered(listener)),
        write: (bytes) => (power.isOff ? 'closed' : port.port.write(bytes)),
      }),
      mount: (device, folder) => this.#mount(device, folder),
      unmount: (folder) => this.#unmount(folder),
      restartMachine: () => {
        this.deeds.push('restart');
      },
      signalInit: () => {
        this.deeds.push('signal init');
      },
      onTerminate: (listener) => {
        this.#terminate = whilePowered(listener);
      },
      selfPath: join(this.folder, 'bin/self'),
      log: (line) => {
        this.log.push(line);
      },
      exit: (code) => {
        this.deeds.push(`exit ${code}`);
        power.isOff = true;
        // The cast holds as far as the agent can see: it does nothing after its end.
        return undefined as never;
      },
      ...this.overrides,
    };
  }

  /** A mount is a symbolic link in place of the folder. */
  #mount(device: string, folder: string): void {
    const name = device.slice(device.lastIndexOf('/') + 1);
    if (readdirSync(folder).length > 0) throw new SystemError('EBUSY', `mounting ${device}`);
    rmSync(folder, { recursive: true });
    symlinkSync(join(this.folder, `drive-${name}`), folder);
    this.deeds.push(`mount ${name}`);
  }

  #unmount(folder: string): void {
    const found = nodePlatform(systemClock).files.stat(folder);
    if (found?.kind !== 'symlink') throw new SystemError('EINVAL', `unmounting ${folder}`);
    rmSync(folder);
    mkdirSync(folder);
    this.deeds.push('unmount');
  }
}
