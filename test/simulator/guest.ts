// The guest of the simulation: a scripted agent that is honest, fails, lies or is silent, and a channel that keeps the session's rules.
import { type Digest, digestOf } from '../../src/base/digest.ts';
import type { AgentReport, HostBody, HostBodyOf } from '../../src/guest/messages.ts';
import type { GuestChannel, GuestChannelOptions } from '../../src/guest/session.ts';
import type { InstalledProduct, Inventory } from '../../src/model/inventory.ts';
import type { Plan } from '../../src/model/plan.ts';
import type { ItemResult } from '../../src/model/result.ts';
import type { FakeClock } from './clock.ts';
import type { Random } from './random.ts';

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
  | 'clings';

type AgentMessageBody = AgentReport extends infer M
  ? M extends unknown
    ? Omit<M, 'nonce' | 'boot' | 'seq'>
    : never
  : never;

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
  /** The agent answers; false while the guest boots or its VM is off. */
  readonly isUp: () => boolean;
  readonly boot: () => string;
  /** The last boot whose agent the host has heard. */
  readonly bootHeardAtMs: () => number | null;
  readonly powerOn: () => void;
  readonly powerOff: () => void;
  /** Another kernel takes over without a reset. */
  readonly kexec: () => void;
  readonly restartAgent: () => void;
  /** The host end of the channel is gone. */
  readonly hangUp: () => void;
  /** Something out of turn. */
  readonly misbehave: () => void;
  readonly openChannel: (options: GuestChannelOptions) => GuestChannel;
  readonly session: () => string | null;
};

export type GuestDeps = {
  readonly clock: FakeClock;
  readonly random: Random;
  readonly say: (what: string) => void;
  /** Asks for a reset of the machine. */
  readonly reset: () => void;
  /** The plan behind a manifest, as the drive shows it. */
  readonly readDrive: (manifestDigest: string) => Plan | null;
  readonly onInstalled: () => void;
};

export function makeGuest(deps: GuestDeps): Guest {
  const { clock, random, say } = deps;
  const products = new Map([['hello', '1.0.0']]);
  let channel: { readonly options: GuestChannelOptions; isClosed: boolean; nonce: string | null } | null = null;
  let boots = 0;
  let boot = '';
  let isUp = false;
  let generation = 0;
  let bootHeardAtMs: number | null = null;
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
    bootHeardAtMs: () => bootHeardAtMs,
    session: () => (channel === null || channel.isClosed ? null : channel.nonce),
    powerOn: () => bootAnew(random.between(1_000, 20_000)),
    powerOff: () => {
      generation += 1;
      isUp = false;
    },
    kexec: () => bootAnew(random.between(500, 5_000)),
    restartAgent: () => {
      if (isUp) hello();
    },
    hangUp: () => {
      channel = null;
    },
    misbehave,
    openChannel,
  };

  function bootAnew(afterMs: number): void {
    generation += 1;
    const mine = generation;
    isUp = false;
    boots += 1;
    boot = `00000000-0000-4000-8000-${String(boots).padStart(12, '0')}`;
    bootHeardAtMs = null;
    needsReboot = false;
    clock.after(afterMs, () => {
      if (mine !== generation) return;
      isUp = true;
      hello();
    });
  }

  function hello(): void {
    if (channel === null || channel.isClosed || self.behaviour === 'silent') return;
    channel.nonce = digestOf(`${boots} ${random.next()}`).slice(0, 32);
    bootHeardAtMs ??= clock.nowMs();
    channel.options.onEvent({ kind: 'opened', nonce: channel.nonce, boot, agentVersion: '1.0.0' });
  }

  function openChannel(options: GuestChannelOptions): GuestChannel {
    const mine = { options, isClosed: false, nonce: null as string | null };
    channel = mine;
    // An agent that runs already is asked for a hello.
    const later = clock.after(1_000, () => {
      if (!mine.isClosed && isUp && mine.nonce === null) hello();
    });
    return {
      send: (body) => receive(mine, body),
      session: () => (mine.isClosed || mine.nonce === null ? null : { nonce: mine.nonce, boot, agentVersion: '1.0.0' }),
      lastHeardMs: () => null,
      close: () => {
        mine.isClosed = true;
        later();
      },
    };
  }

  /** In the session in which it was asked; an answer that comes late is refused by the channel. */
  function answer(body: AgentMessageBody, afterMs = random.between(1, 2_000)): void {
    const mine = channel;
    const nonce = mine?.nonce ?? null;
    const at = generation;
    clock.after(afterMs, () => {
      if (mine === null || nonce === null || mine.isClosed || mine.nonce !== nonce || at !== generation) return;
      // The cast holds: the envelope completes the message, and its counter is never looked at again.
      const message = { ...body, nonce, boot, seq: 1 } as AgentReport;
      mine.options.onEvent({ kind: 'message', nonce, boot, body: message });
    });
  }

  function receive(mine: typeof channel, body: HostBody): void {
    if (mine === null || mine.isClosed || mine.nonce === null || !isUp) return;
    if (self.behaviour === 'silent' || (self.behaviour === 'forgetful' && random.chance(0.4))) return;
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
        if (random.chance(0.9)) clock.after(500, () => deps.reset());
        return;
      case 'ask-confirm':
        confirm(body);
        return;
      default:
        return;
    }
  }

  function install(offer: HostBodyOf<'offer'>): void {
    const { run, manifestDigest } = offer;
    const plan = deps.readDrive(manifestDigest);
    if (plan === null) {
      answer({
        type: 'drive',
        run,
        manifestDigest,
        state: 'refused',
        code: 'manifest-digest',
        detail: 'not that one',
      });
      return;
    }
    answer({ type: 'drive', run, manifestDigest, state: 'verified' }, 100);
    const at = generation;
    const doneMs = random.between(1_000, 60_000);
    clock.after(doneMs, () => {
      if (at !== generation) return; // Power failed in the middle.
      const outcome = self.behaviour === 'fails' ? 'failed' : 'installed';
      results = plan.items.map((item) => ({ item: item.id, outcome, durationMs: 1 }));
      manifest = manifestDigest;
      if (self.behaviour !== 'fails' && self.behaviour !== 'forges') {
        for (const { release } of plan.items) products.set(release.product, release.version);
        needsReboot = random.chance(0.3);
      }
      say(`guest installs ${outcome}`);
      deps.onInstalled();
      answer({ type: 'installed', run, manifestDigest, results: [...results], rebootRequired: needsReboot }, 1);
    });
  }

  function confirm(body: HostBodyOf<'ask-confirm'>): void {
    const { run, planDigest } = body;
    self.confirmedAs = self.behaviour;
    const answers: AgentMessageBody = {
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

  function misbehave(): void {
    if (!isUp) return;
    const run = '0'.repeat(32) as Plan['run']; // The form that the brand promises.
    const digest = digestOf('made up');
    const what = random.pick<() => void>([
      [3, () => answer({ type: 'inventory', inventory: inventory(false) })],
      [3, () => answer({ type: 'drive', run, manifestDigest: digest, state: 'released' })],
      [2, () => answer({ type: 'installed', run, manifestDigest: digest, results: [], rebootRequired: false })],
      [
        3,
        () =>
          answer({
            type: 'confirm',
            run,
            planDigest: digest,
            manifestDigest: null,
            results: [],
            inventory: inventory(false),
          }),
      ],
      [1, cutChannel],
    ]);
    what();
  }

  function cutChannel(): void {
    const mine = channel;
    if (mine === null || mine.isClosed) return;
    mine.isClosed = true;
    mine.options.onEvent({ kind: 'misbehaved', code: 'too-many-lines', detail: 'it floods' });
    mine.options.onEvent({ kind: 'closed' });
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
