// The guest of the simulation: the real agent's end of the channel, and behind it an agent that is honest, fails, lies or is silent.
import { type Channel, openChannel } from '../../guest-agent/channel.ts';
import type { Platform } from '../../guest-agent/platform/platform.ts';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import type { AgentBody, HostBody, HostBodyOf } from '../../src/guest/messages.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { InstalledProduct, Inventory } from '../../src/model/inventory.ts';
import type { Plan } from '../../src/model/plan.ts';
import type { ItemResult } from '../../src/model/result.ts';
import type { FakeClock, ProcessClock } from './clock.ts';
import type { Random } from './random.ts';
import type { BuiltImage } from './rooms.ts';
import type { Wire } from './wire.ts';

export type Behaviour =
  | 'honest'
  /** Says that all is installed; its inventory shows that nothing is. */
  | 'forges'
  /** Shows a stale product only when it confirms. */
  | 'hides'
  | 'fails'
  /** Answers some messages, not all. */
  | 'forgetful'
  | 'silent'
  /** Never lets go of the drive. */
  | 'clings'
  /** Takes very long for everything. */
  | 'slow';

/** What a guest has on its disk. */
export type Disk = {
  readonly products: ReadonlyMap<string, string>;
  readonly manifest: Digest | null;
  readonly results: readonly ItemResult[];
};

export type Guest = {
  behaviour: Behaviour;
  /** What it was when it confirmed last. */
  confirmedAs: Behaviour;
  readonly products: ReadonlyMap<string, string>;
  readonly readDisk: () => Disk;
  readonly writeDisk: (disk: Disk) => void;
  /** The agent runs; false while the guest boots or its VM is off. */
  readonly isUp: () => boolean;
  readonly boot: () => string;
  /** Since when the host has a session with this boot's agent. */
  readonly heardAtMs: () => number | null;
  /** When it reported last, over a line that loses nothing. */
  readonly reportedAtMs: () => number;
  readonly powerOn: () => void;
  readonly powerOff: () => void;
  /** Another kernel takes over without a reset. */
  readonly kexec: () => void;
  readonly restartAgent: () => void;
  /** Something well-formed and out of turn, in the present session. */
  readonly forge: () => boolean;
  /** A line in a session that ended, as an agent says it whose memory was restored from a snapshot. */
  readonly speakFromThePast: () => boolean;
};

export type GuestDeps = {
  readonly vm: VmId;
  readonly clock: FakeClock;
  readonly random: Random;
  readonly wire: Wire;
  readonly say: (what: string) => void;
  /** Asks for a reset of the machine. */
  readonly reset: () => void;
  /** The drive that it sees. */
  readonly drive: () => BuiltImage | null;
  readonly onInstalled: () => void;
  /** Vendors offer these to it. */
  readonly products: readonly string[];
  /** It reboots whenever it is asked to. */
  readonly isReliable: boolean;
};

/** Channel sessions that a restored guest may believe in. */
const PAST_SESSIONS_MAX = 8;

type Past = { readonly nonce: string; readonly boot: string; seq: number; readonly run: string; readonly plan: Digest };

export function makeGuest(deps: GuestDeps): Guest {
  const { clock, random, say, wire, vm } = deps;
  const products = new Map(deps.products.map((product) => [product, '1.0.0']));
  let agent: { readonly process: ProcessClock; readonly channel: Channel } | null = null;
  const pasts: Past[] = [];
  let boots = 0;
  let boot = '';
  let isUp = false;
  let generation = 0;
  let heardAtMs: number | null = null;
  let reportedAtMs = Number.NEGATIVE_INFINITY;
  let manifest: Digest | null = null;
  let results: readonly ItemResult[] = [];
  let needsReboot = false;

  const self: Guest = {
    behaviour: 'honest',
    confirmedAs: 'honest',
    products,
    readDisk: () => ({ products: new Map(products), manifest, results }),
    writeDisk: (disk) => {
      products.clear();
      for (const [product, version] of disk.products) products.set(product, version);
      ({ manifest, results } = disk);
    },
    isUp: () => isUp,
    boot: () => boot,
    heardAtMs: () => heardAtMs,
    reportedAtMs: () => reportedAtMs,
    powerOn: () => bootAnew(random.between(1_000, 20_000)),
    powerOff: () => {
      generation += 1;
      stopAgent();
    },
    kexec: () => bootAnew(random.between(500, 5_000)),
    restartAgent: () => {
      if (!isUp) return;
      stopAgent();
      startAgent();
    },
    forge,
    speakFromThePast,
  };

  function stopAgent(): void {
    isUp = false;
    agent?.process.kill();
    agent = null;
    wire.closePort();
  }

  function startAgent(): void {
    const process = clock.fork();
    // The cast holds: of its platform, the agent's channel uses the clock, the text functions, the port and the log.
    const platform = {
      clock: process,
      encode: (text: string) => new TextEncoder().encode(text),
      decode: (bytes: Uint8Array) => new TextDecoder().decode(bytes),
      openPort: () => wire.openPort(),
      log: () => {},
    } as unknown as Platform;
    isUp = true;
    const channel = openChannel({
      platform,
      findPort: () => '/simulated',
      boot,
      agentVersion: '1.0.0',
      listener: {
        opened: () => {
          if (agent?.channel === channel) heardAtMs ??= clock.monotonicMs();
        },
        request: (request) => {
          if (agent?.channel === channel) receive(request);
        },
      },
    });
    agent = { process, channel };
  }

  function bootAnew(afterMs: number): void {
    generation += 1;
    const mine = generation;
    stopAgent();
    boots += 1;
    boot = `${digestOf(vm).slice(0, 8)}-0000-4000-8000-${String(boots).padStart(12, '0')}`;
    heardAtMs = null;
    needsReboot = false;
    clock.after(afterMs, () => {
      if (mine === generation) startAgent();
    });
  }

  /** In the session in which it was asked; the next session asks again. */
  function answer(body: AgentBody, afterMs = random.between(1, 2_000)): void {
    const mine = agent;
    const nonce = mine?.channel.session()?.nonce;
    if (mine === null || nonce === undefined) return;
    const delayMs = self.behaviour === 'slow' ? afterMs + random.between(0, 90_000) : afterMs;
    mine.process.after(delayMs, () => {
      if (mine !== agent || mine.channel.session()?.nonce !== nonce) return;
      mine.channel.send(body);
      if (body.type === 'inventory' && !wire.isLossy && !wire.isMute) reportedAtMs = clock.monotonicMs();
    });
  }

  function receive(body: HostBody): void {
    if (self.behaviour === 'forgetful' && random.chance(0.4)) return;
    say(`guest hears ${body.type}`);
    switch (body.type) {
      case 'ask-inventory':
        answer({ type: 'inventory', inventory: inventory(self.behaviour === 'hides') });
        return;
      case 'offer':
        install(body);
        return;
      case 'release':
        if (self.behaviour === 'clings') return;
        answer({ type: 'drive', run: body.run, manifestDigest: body.manifestDigest, state: 'released' });
        return;
      case 'reboot':
        if (deps.isReliable || random.chance(0.9)) agent?.process.after(500, () => deps.reset());
        return;
      case 'ask-confirm':
        confirm(body);
        return;
      default:
        return;
    }
  }

  /** What is on the drive under that manifest, or why the agent refuses it. */
  function readDrive(digest: Digest): { readonly plan: Plan } | { readonly refusal: string } {
    const drive = deps.drive();
    if (drive === null) return { refusal: 'mount-failed' };
    if (drive.manifestDigest !== digest) return { refusal: 'manifest-digest' };
    return drive.blobs.every((blob) => blob.isSound) ? { plan: drive.plan } : { refusal: 'digest-mismatch' };
  }

  function install(offer: HostBodyOf<'offer'>): void {
    const { run, manifestDigest } = offer;
    const read = readDrive(manifestDigest);
    if ('refusal' in read) {
      answer({ type: 'drive', run, manifestDigest, state: 'refused', code: read.refusal, detail: 'not that one' });
      return;
    }
    answer({ type: 'drive', run, manifestDigest, state: 'verified' }, 100);
    const at = generation;
    const doneMs = random.between(1_000, 60_000);
    agent?.process.after(doneMs, () => {
      if (at !== generation) return; // Power failed in the middle.
      const outcome = self.behaviour === 'fails' ? 'failed' : 'installed';
      results = read.plan.items.map((item) => ({ item: item.id, outcome, durationMs: 1 }));
      manifest = manifestDigest;
      if (self.behaviour !== 'fails' && self.behaviour !== 'forges') {
        for (const { release } of read.plan.items) products.set(release.product, release.version);
        needsReboot = random.chance(0.3);
      }
      say(`guest: ${outcome}`);
      deps.onInstalled();
      answer({ type: 'installed', run, manifestDigest, results: [...results], rebootRequired: needsReboot }, 1);
    });
  }

  function confirm(body: HostBodyOf<'ask-confirm'>): void {
    const { run, planDigest } = body;
    self.confirmedAs = self.behaviour;
    const session = agent?.channel.session();
    if (session != null) {
      pasts.push({ nonce: session.nonce, boot, seq: random.between(1, 6), run, plan: planDigest });
      if (pasts.length > PAST_SESSIONS_MAX) pasts.shift();
    }
    const answers: AgentBody = {
      type: 'confirm',
      run,
      planDigest,
      manifestDigest: body.manifestDigest === null ? null : manifest,
      results: body.manifestDigest === null ? [] : [...results],
      inventory: inventory(false),
    };
    answer(answers, 300);
    if (random.chance(0.2)) answer(answers, 301);
  }

  function forge(): boolean {
    const channel = agent?.channel;
    if (channel === undefined || channel.session() === null) return false;
    const run = '0'.repeat(32) as Plan['run']; // The form that the brand promises.
    const digest = digestOf('made up');
    const body = random.pick<AgentBody>([
      [3, { type: 'inventory', inventory: inventory(false) }],
      [3, { type: 'drive', run, manifestDigest: digest, state: 'released' }],
      [2, { type: 'drive', run, manifestDigest: digest, state: 'verified' }],
      [2, { type: 'installed', run, manifestDigest: digest, results: [], rebootRequired: false }],
      [3, { type: 'confirm', run, planDigest: digest, manifestDigest: null, results: [], inventory: inventory(false) }],
    ]);
    channel.send(body);
    return true;
  }

  function speakFromThePast(): boolean {
    const past = pasts[random.between(0, pasts.length - 1)];
    if (!isUp || past === undefined) return false;
    past.seq += 1;
    const { nonce, boot: itsBoot, seq, run, plan } = past;
    const envelope = { nonce, boot: itsBoot, seq };
    const said = { run, planDigest: plan, manifestDigest: manifest, results, inventory: inventory(false) };
    wire.inject(`${JSON.stringify({ type: 'confirm', ...envelope, ...said })}\n`);
    return true;
  }

  function inventory(isHiding: boolean): Inventory {
    const list = [...products].map(
      ([product, version]): InstalledProduct => ({ ecosystem: 'bundle', product, version, state: 'installed' }),
    );
    if (self.behaviour === 'hides' && !isHiding)
      list.push({ ecosystem: 'bundle', product: 'late', version: '1.0.0', state: 'installed' });
    return {
      os: { id: 'tiny', versionId: '1', arch: 'amd64' },
      products: list,
      config: [],
      agent: { version: '1.0.0', digest: null },
      abilities: { drives: ['virtio-blk'], compressions: ['none'] },
      freeBytes: 1,
      rebootRequired: needsReboot,
      lastShutdown: null,
    };
  }

  return self;
}
