// One VM of a fleet with a life of its own: its QEMU dies and comes back, its guest resets itself, its agent changes its ways.
// Everything that a judge from outside has to know is written down where it happens: what the agent confirmed, and each raised link.
import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { Duplex } from 'node:stream';
import { systemClock } from '../../src/base/clock.ts';
import { digestOf } from '../../src/base/digest.ts';
import { canonicalJson } from '../../src/base/digest-text.ts';
import type { HostMessageOf } from '../../src/guest/messages.ts';
import type { AttachedVm, Namespace } from '../../src/hypervisor/vm-spec.ts';
import type { DriveTransport } from '../../src/model/drive.ts';
import type { VmId } from '../../src/model/ids.ts';
import { inventoryWith } from './fleet.ts';
import { type FakeQemu, startFakeQemu } from './qemu.ts';
import {
  type AgentDisk,
  type Behaviour,
  makeAgentDisk,
  runScriptedAgent,
  type ScriptedAgent,
} from './scripted-agent.ts';

/** A confirmation that an agent sent. */
export type SaidConfirm = {
  readonly atMs: number;
  readonly vm: string;
  readonly run: string;
  readonly nonce: string;
  readonly boot: string;
  readonly inventoryDigest: string;
  /** Whether the agent did what it confirms. */
  readonly isTruthful: boolean;
};

/** `set_link up` at a QEMU. */
export type RaisedLink = { readonly atMs: number; readonly vm: string };

export type FleetDiary = { readonly confirms: SaidConfirm[]; readonly raises: RaisedLink[] };

export type LivingVm = {
  readonly spec: AttachedVm;
  readonly behaviour: () => Behaviour;
  readonly isOn: () => boolean;
  /** Whether any of its links is up; false without a QEMU. */
  readonly isLinkUp: () => boolean;
  /** A QEMU that waits before its first instruction; fine when there is one. */
  readonly powerOn: () => Promise<void>;
  /** Its QEMU is killed. */
  readonly powerOff: () => Promise<void>;
  /** The guest resets itself; from then on its agent is of this kind, and the disk what it was before any update if it says so. */
  readonly reset: (next: { readonly behaviour: Behaviour; readonly isStale: boolean }) => void;
};

export type LivingVmOptions = {
  readonly index: number;
  /** For the sockets; a short path. */
  readonly folder: string;
  readonly tap: string;
  readonly namespace: Namespace;
  /** How the drive is shown to it; NBD is not for fakes. */
  readonly transport: Exclude<DriveTransport, 'nbd'>;
  /** The version of the product `hello` on a stale disk. */
  readonly staleVersion: string;
  /** Milliseconds that an agent takes for what a real one needs time for. */
  readonly pauseMs: () => number;
  readonly diary: FleetDiary;
};

/** Kinds of agents whose confirmations are not true, or not theirs; with a stale disk none of them may ever be let in. */
const LIARS: ReadonlySet<Behaviour> = new Set([
  'install-fails',
  'drive-refused',
  'forged-inventory',
  'forged-plan-digest',
  'forged-manifest-digest',
  'wrong-boot',
  'wrong-nonce',
]);
const BOOT_MIN_MS = 500;
const READ_TRIES = 20;
const READ_PAUSE_MS = 150;

/** Makes a VM that is off. */
export function makeLivingVm(options: LivingVmOptions): LivingVm {
  const { index, folder, tap, diary, pauseMs } = options;
  const vm = `fleet-${index}` as VmId; // It has the form of a VmId.
  const spec: AttachedVm = {
    format: 'pratique.vm/1',
    kind: 'attached',
    vm,
    qmpSocket: join(folder, `q${index}`),
    channelSocket: join(folder, `c${index}`),
    nics: [{ id: 'net0', tap }],
    drivePort: 'spare0',
    namespace: options.namespace,
    ...(options.transport === 'direct' ? {} : { drive: { transport: options.transport } }),
  };
  let disk: AgentDisk = makeAgentDisk(inventoryWith(options.staleVersion));
  let behaviour: Behaviour = 'honest';
  let qemu: FakeQemu | null = null;
  let host: Socket | null = null;
  let agent: ScriptedAgent | null = null;
  let isRunning = false;
  /** Its agent has been started in this boot. */
  let isUp = false;
  let boots = 0;

  const bootId = (): string =>
    `00000000-0000-4000-8${String(index).padStart(3, '0')}-${String(boots).padStart(12, '0')}`;
  const hang = (): void => {
    agent?.close();
    agent = null;
  };
  /** An agent speaks when both are there: a guest that runs, and a host at the other end of the wire. */
  const speak = (): void => {
    hang();
    if (!isUp || host === null || host.destroyed) return;
    agent = runScriptedAgent(new GuestWire(host, listenFor(diary, { vm, isTruthful: !LIARS.has(behaviour) })), {
      disk,
      boot: bootId(),
      behaviour,
      readManifest: async (offer) => {
        await systemClock.sleep(pauseMs());
        return await readManifest(() => qemu, offer);
      },
      beforeRelease: async () => await systemClock.sleep(pauseMs()),
    });
  };
  const startQemu = async (): Promise<FakeQemu> =>
    await startFakeQemu({
      qmpSocket: spec.qmpSocket,
      channelSocket: spec.channelSocket,
      nics: [{ id: 'net0', tap }],
      ports: ['spare0'],
      rebootAction: 'reset',
      onChannel: (stream) => {
        host = stream as Socket; // The cast holds: it is what a server's `connection` gives.
        speak();
      },
      onCommand: (command, args) => {
        if (command === 'set_link' && args.up === true) diary.raises.push({ atMs: systemClock.nowMs(), vm });
      },
      onEvent: (event) => {
        if (event !== 'RESUME' || isRunning) return;
        isRunning = true;
        void boot();
      },
    });
  /** A guest needs a moment to its agent's first word; the host has learned of a reset by then. */
  const boot = async (): Promise<void> => {
    const mine = boots;
    await systemClock.sleep(BOOT_MIN_MS + pauseMs());
    if (boots !== mine || qemu === null) return;
    isUp = true;
    speak();
  };
  const end = (): void => {
    isRunning = false;
    isUp = false;
    hang();
    host = null;
    qemu = null;
  };
  return {
    spec,
    behaviour: () => behaviour,
    isOn: () => qemu !== null,
    isLinkUp: () => [...(qemu?.links.values() ?? [])].some((isUp) => isUp),
    powerOn: async () => {
      if (qemu !== null) return;
      boots += 1;
      const started = await startQemu();
      qemu = started;
      // The host may have ended it.
      void started.closed.then(() => {
        if (qemu === started) end();
      });
    },
    powerOff: async () => {
      const ending = qemu;
      end();
      await ending?.close();
    },
    reset: (next) => {
      behaviour = next.behaviour;
      if (next.isStale) disk = makeAgentDisk(inventoryWith(options.staleVersion));
      if (qemu === null || !isRunning) return;
      boots += 1;
      isUp = false;
      hang();
      qemu.guestReset();
      void boot();
    },
  };
}

/** The end of the port that one boot's agent holds: when that boot is over it is closed, and the host's connection stays. */
class GuestWire extends Duplex {
  readonly #host: Socket;
  readonly #onSaid: (bytes: Buffer) => void;
  readonly #hear = (bytes: Buffer): void => void this.push(bytes);
  readonly #end = (): void => void this.destroy();

  constructor(host: Socket, onSaid: (bytes: Buffer) => void) {
    super();
    this.#host = host;
    this.#onSaid = onSaid;
    host.on('data', this.#hear);
    host.once('close', this.#end);
  }

  override _read(): void {
    // Everything is pushed as it comes; what the host sends is bounded by what it waits for.
  }

  override _write(bytes: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#onSaid(bytes);
    this.#host.write(bytes, done);
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#host.off('data', this.#hear);
    this.#host.off('close', this.#end);
    // A guest that does not read leaves the bytes in the port; nobody reads them in the next boot either.
    this.#host.resume();
    done(error);
  }
}

/** Writes down the confirmations among the lines. An agent writes whole lines. */
function listenFor(diary: FleetDiary, { vm, isTruthful }: { vm: string; isTruthful: boolean }) {
  return (bytes: Buffer): void => {
    const line = bytes.toString('utf8');
    if (!line.startsWith('{"type":"confirm"')) return;
    // The cast holds: our own agent wrote it.
    const said = JSON.parse(line) as { run: string; nonce: string; boot: string; inventory: unknown };
    diary.confirms.push({
      atMs: systemClock.nowMs(),
      vm,
      run: said.run,
      nonce: said.nonce,
      boot: said.boot,
      inventoryDigest: digestOf(canonicalJson(said.inventory)),
      isTruthful,
    });
  };
}

/**
 * What mounting the drive would show: the manifest lies in the metadata, up to the next zero byte. The file may be away for a
 * moment, or the process that serves it; empty when it stays away.
 */
async function readManifest(qemu: () => FakeQemu | null, offer: HostMessageOf<'offer'>): Promise<string> {
  for (let tries = 0; tries < READ_TRIES; tries += 1) {
    const text = await readOnce(qemu()).catch(() => null);
    if (text !== null && digestOf(text) === offer.manifestDigest) return text;
    await systemClock.sleep(READ_PAUSE_MS);
  }
  return '';
}

async function readOnce(qemu: FakeQemu | null): Promise<string | null> {
  const nodes = qemu?.nodes;
  const file = (nodes?.get('pratique-image2') ?? nodes?.get('pratique-image'))?.file;
  if (typeof file !== 'object' || file === null || !('filename' in file)) return null;
  const path = String(file.filename);
  const bytes = await readFile(path.endsWith('.vmdk') ? join(dirname(path), 'meta.bin') : path);
  const start = bytes.indexOf('{"extraFiles":');
  const end = bytes.indexOf(0, start);
  return start < 0 ? null : bytes.subarray(start, end < 0 ? bytes.length : end).toString('utf8');
}
