// A whole guest for unit tests: a folder with /proc, /sys, drives and state, an agent on Node in it, and a host at its port.
import { randomUUID } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { startAgent } from '../agent.ts';
import { GUEST_PATHS, type Paths } from '../paths.ts';
import { nodePlatform } from '../platform/node.ts';
import { type Platform, SystemError } from '../platform/platform.ts';
import { FakeHost } from './fake-host.ts';
import { FakePort } from './fake-port.ts';
import { PowerCut, PowerSupply } from './power-supply.ts';

/** The agent's milliseconds pass this much faster than ours. */
const TIME_FACTOR = 25;

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

  terminate(): void {
    this.#terminate();
  }

  #platform(power: PowerSupply, port: FakePort): Platform {
    const node = nodePlatform();
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
    const found = nodePlatform().files.stat(folder);
    if (found?.kind !== 'symlink') throw new SystemError('EINVAL', `unmounting ${folder}`);
    rmSync(folder);
    mkdirSync(folder);
    this.deeds.push('unmount');
  }
}
