// An agent that speaks the real protocol over any duplex stream: honest by default, or dishonest in one chosen way.
import type { Duplex } from 'node:stream';
import { digestOf } from '../../src/base/digest.ts';
import { CHANNEL_LINE_BYTES_MAX } from '../../src/base/limits.ts';
import { makeChannelLineSplitter } from '../../src/guest/channel-lines.ts';
import { cutIntoChunks } from '../../src/guest/chunks.ts';
import type { AgentBody, AgentBodyOf, HostMessage, HostMessageOf } from '../../src/guest/messages.ts';
import type { InstalledProduct, Inventory } from '../../src/model/inventory.ts';
import type { Manifest, ManifestItem } from '../../src/model/manifest.ts';
import type { ItemResult } from '../../src/model/result.ts';

export type Behaviour =
  /** Does what it is told, truthfully. An up-to-date VM needs nothing else: it is asked to confirm an empty plan. */
  | 'honest'
  | 'up-to-date'
  /** Reports each item as failed. */
  | 'install-fails'
  /** Cannot read the drive. */
  | 'drive-refused'
  /** Says that all is installed, well-formed and in order; its fresh inventory shows the old versions. */
  | 'forged-inventory'
  | 'forged-plan-digest'
  | 'forged-manifest-digest'
  /** Confirms right after its inventory, before anybody asked, everything installed. */
  | 'confirm-unasked'
  /** Sends every message twice. */
  | 'replay'
  /** Sends the message after the next one first. */
  | 'reorder'
  | 'wrong-boot'
  | 'wrong-nonce'
  /** Precedes its inventory with a line of 64 KiB. */
  | 'oversized'
  /** Sends valid messages as fast as the stream takes them, and answers nothing. */
  | 'flood'
  /** Sends rubbish as fast as the stream takes it. */
  | 'rubbish'
  /** Never says a word. */
  | 'silent'
  /** Reports, then never answers again. */
  | 'silent-after-inventory'
  /** A second agent on the same port says hello; the first goes on with its own nonce. */
  | 'two-agents'
  /** Sends, but reads nothing. */
  | 'deaf';

/** What an agent keeps on its disk: give the same object to the agent of the next boot. */
export type AgentDisk = {
  inventory: Inventory;
  /** Run, last manifest and results of what was installed. */
  installed: { run: string; manifestDigest: string; results: ItemResult[] } | null;
};

export type AgentScript = {
  readonly disk: AgentDisk;
  /** A UUID; another one after each boot. */
  readonly boot: string;
  readonly agentVersion?: string;
  readonly behaviour?: Behaviour;
  /** The text of /manifest.json of the drive that is attached now; instead of mounting it. */
  readonly readManifest?: (offer: HostMessageOf<'offer'>) => string | Promise<string>;
  /** Called after `bye` when the host asks for a reboot; the caller ends the stream and starts the next boot's agent. */
  readonly onReboot?: () => void;
  readonly onMessage?: (message: HostMessage) => void;
  /** Holds the answer to `release` back: a barrier for many agents that are to let go at the same moment. */
  readonly beforeRelease?: () => Promise<void>;
};

export type ScriptedAgent = {
  /** Everything the host sent, chunks put together. */
  readonly received: readonly HostMessage[];
  readonly disk: AgentDisk;
  /** Sends any message in the present session. */
  readonly post: (body: AgentBody) => void;
  /** Sends any line as it is. */
  readonly sendLine: (line: string | Uint8Array) => void;
  readonly session: () => { readonly nonce: string; readonly seq: number } | null;
  /** Resolves when the stream has ended. */
  readonly done: Promise<void>;
  readonly close: () => void;
};

/** A disk of a VM that has just been installed. */
export function makeAgentDisk(inventory: Inventory): AgentDisk {
  return { inventory, installed: null };
}

/** Starts an agent on a stream: a socket, or one end of a pair. It says hello at once. */
export function runScriptedAgent(stream: Duplex, script: AgentScript): ScriptedAgent {
  return new Agent(stream, script);
}

const OTHER_BOOT = 'ffffffff-ffff-4fff-bfff-ffffffffffff';
const ZERO_DIGEST = digestOf('');

class Agent implements ScriptedAgent {
  readonly received: HostMessage[] = [];
  readonly disk: AgentDisk;
  readonly done: Promise<void>;
  readonly #stream: Duplex;
  readonly #script: AgentScript;
  readonly #behaviour: Behaviour;
  #nonce: string | null = null;
  #seq = 0;
  #transfers = 0;
  #chunks: string[] = [];
  #heldBack: string | null = null;
  #isDeaf = false;
  #hellos = 0;

  constructor(stream: Duplex, script: AgentScript) {
    this.#stream = stream;
    this.#script = script;
    this.#behaviour = script.behaviour ?? 'honest';
    this.disk = script.disk;
    this.done = new Promise((resolve) => stream.once('close', resolve));
    stream.on('error', () => {}); // The host cut us off; `close` follows.
    if (this.#behaviour !== 'deaf') this.#listen();
    if (this.#behaviour !== 'silent') this.#hello();
    if (this.#behaviour === 'rubbish') this.#pour(() => 'x'.repeat(100));
  }

  session() {
    return this.#nonce === null ? null : { nonce: this.#nonce, seq: this.#seq };
  }

  close(): void {
    this.#stream.destroy();
  }

  sendLine(line: string | Uint8Array): void {
    if (this.#stream.destroyed) return;
    this.#stream.write(line);
    this.#stream.write('\n');
  }

  post(body: AgentBody): void {
    if (this.#nonce === null) return;
    for (const line of this.#encode(body)) this.#sendInOrder(line);
  }

  #hello(): void {
    this.#hellos += 1;
    const agent = { version: this.#script.agentVersion ?? '0.1.0' };
    this.sendLine(JSON.stringify({ type: 'hello', protocols: [1], boot: this.#script.boot, seq: 0, agent }));
  }

  #listen(): void {
    const splitter = makeChannelLineSplitter(CHANNEL_LINE_BYTES_MAX);
    this.#stream.on('data', (bytes: Buffer) => {
      for (const line of splitter.push(bytes)) {
        if (line.kind !== 'line') throw new Error(`assertion failed: the host sent a line that is ${line.kind}`);
        // The host is trusted by the guest; what it sends is checked by the tests of the session.
        this.#hear(JSON.parse(line.text) as HostMessage);
      }
    });
  }

  #hear(message: HostMessage): void {
    if (message.type === 'chunk') {
      this.#chunks.push(message.text);
      if (this.#chunks.length < message.total) return;
      const { nonce, boot, seq } = message;
      const body = JSON.parse(this.#chunks.join('')) as object;
      this.#chunks = [];
      this.#hear({ ...body, nonce, boot, seq } as HostMessage);
      return;
    }
    this.received.push(message);
    this.#script.onMessage?.(message);
    if (this.#isDeaf) return;
    void this.#answer(message);
  }

  async #answer(message: Exclude<HostMessage, { type: 'chunk' }>): Promise<void> {
    switch (message.type) {
      case 'open':
        this.#enter(message);
        return;
      case 'ask-inventory':
        this.#report();
        return;
      case 'offer':
        await this.#install(message);
        return;
      case 'release':
        await this.#script.beforeRelease?.();
        this.post({ type: 'drive', run: message.run, manifestDigest: message.manifestDigest, state: 'released' });
        return;
      case 'reboot':
        this.post({ type: 'bye', reason: 'reboot' });
        this.disk.inventory = { ...this.disk.inventory, rebootRequired: false };
        this.#script.onReboot?.();
        return;
      case 'ask-confirm':
        this.post(this.#confirmation(message));
        return;
      case 'ping':
        this.post({ type: 'pong' });
        return;
      case 'refuse':
        this.#onRefuse(message);
        return;
      case 'admitted':
      case 'hold':
        return;
      default:
        message satisfies never;
    }
  }

  #enter(open: HostMessageOf<'open'>): void {
    // The second agent's session is not the first one's: it goes on with the nonce it has.
    if (this.#behaviour === 'two-agents' && this.#nonce !== null) return;
    this.#nonce = open.nonce;
    this.#seq = 0;
    this.#transfers = 0;
    this.#heldBack = null;
    if (this.#behaviour === 'two-agents') this.#hello();
    this.#isDeaf ||= this.#behaviour === 'flood';
    if (this.#behaviour === 'flood') this.#pour(() => this.#encode({ type: 'pong' })[0] ?? '');
  }

  #onRefuse(refuse: HostMessageOf<'refuse'>): void {
    const isHonest = !['replay', 'reorder', 'wrong-boot', 'wrong-nonce', 'two-agents'].includes(this.#behaviour);
    // Said in the present session, the last two are about a message from before it.
    const isIgnored = ['unexpected', 'no-common-protocol', 'stale-session', 'wrong-boot'].includes(refuse.code);
    if (!isHonest || isIgnored) return;
    if (this.#hellos < 5) this.#hello();
  }

  #report(): void {
    if (this.#behaviour === 'oversized') this.sendLine('x'.repeat(64 * 1024));
    this.post({ type: 'inventory', inventory: this.disk.inventory });
    if (this.#behaviour === 'silent-after-inventory') this.#isDeaf = true;
    if (this.#behaviour !== 'confirm-unasked') return;
    const run = '0'.repeat(32) as AgentBodyOf<'confirm'>['run']; // It has not been told the run yet.
    this.post({
      type: 'confirm',
      run,
      planDigest: ZERO_DIGEST,
      manifestDigest: null,
      results: [],
      inventory: this.disk.inventory,
    });
  }

  async #install(offer: HostMessageOf<'offer'>): Promise<void> {
    const { run, manifestDigest } = offer;
    const text = await this.#script.readManifest?.(offer);
    if (text === undefined || this.#behaviour === 'drive-refused' || digestOf(text) !== manifestDigest) {
      const code = text === undefined ? 'no-drive' : 'manifest-mismatch';
      this.post({ type: 'drive', run, manifestDigest, state: 'refused', code, detail: 'the manifest is another one' });
      return;
    }
    this.post({ type: 'drive', run, manifestDigest, state: 'verified' });
    // The host made it, and its digest is the announced one.
    const { items } = JSON.parse(text) as Manifest;
    for (const [done, item] of items.entries()) {
      this.post({ type: 'progress', run, item: item.id, phase: 'install', done, total: items.length });
    }
    const results = items.map((item) => this.#installItem(item));
    this.disk.installed = { run, manifestDigest, results };
    const { rebootRequired } = this.disk.inventory;
    this.post({ type: 'installed', run, manifestDigest, results, rebootRequired });
  }

  #installItem(item: ManifestItem): ItemResult {
    if (this.#behaviour === 'install-fails') {
      return { item: item.id, outcome: 'failed', code: 'install-failed', exitCode: 1, output: 'no', durationMs: 1 };
    }
    const { install } = item;
    const hasCheck = install.action === 'bundle' && install.check !== undefined;
    if (this.#behaviour !== 'forged-inventory') this.#putOnDisk(item);
    return { item: item.id, outcome: 'installed', ...(hasCheck ? { checkPassed: true } : {}), durationMs: 1 };
  }

  #putOnDisk(item: ManifestItem): void {
    const { inventory } = this.disk;
    const { ecosystem, product, version, install } = item;
    const arch = item.arch === undefined ? {} : { arch: item.arch };
    const isSame = (other: InstalledProduct) =>
      other.ecosystem === ecosystem && other.product === product && (other.arch ?? item.arch) === item.arch;
    const needsReboot =
      install.action !== 'agent' &&
      install.reboot === true &&
      !inventory.products.some((p) => isSame(p) && p.version === version);
    const agent = ecosystem === 'agent' ? { ...inventory.agent, version } : inventory.agent;
    const others = inventory.products.filter((other) => !isSame(other));
    const installed: InstalledProduct = { ecosystem, product, version, ...arch, state: 'installed' };
    const products = ecosystem === 'agent' ? others : [...others, installed];
    this.disk.inventory = { ...inventory, products, agent, rebootRequired: inventory.rebootRequired || needsReboot };
  }

  #confirmation(ask: HostMessageOf<'ask-confirm'>): AgentBodyOf<'confirm'> {
    const known = this.disk.installed?.run === ask.run ? this.disk.installed : null;
    const isForged = (what: Behaviour) => this.#behaviour === what;
    // Both casts hold: the digest was the host's own when it was kept.
    const manifestDigest = (known?.manifestDigest ?? null) as AgentBodyOf<'confirm'>['manifestDigest'];
    return {
      type: 'confirm',
      run: ask.run,
      planDigest: isForged('forged-plan-digest') ? ZERO_DIGEST : ask.planDigest,
      manifestDigest: isForged('forged-manifest-digest') ? ZERO_DIGEST : manifestDigest,
      results: known?.results ?? [],
      inventory: this.disk.inventory,
    };
  }

  #encode(body: AgentBody): readonly string[] {
    const { type, ...fields } = body;
    const nonce = this.#behaviour === 'wrong-nonce' ? 'f'.repeat(32) : this.#nonce;
    const envelope = { nonce, boot: this.#behaviour === 'wrong-boot' ? OTHER_BOOT : this.#script.boot };
    const whole = JSON.stringify({ type, ...envelope, seq: this.#seq + 1, ...fields });
    if (Buffer.byteLength(whole) < CHANNEL_LINE_BYTES_MAX) {
      this.#seq += 1;
      return [whole];
    }
    this.#transfers += 1;
    const pieces = cutIntoChunks(JSON.stringify(body));
    return pieces.map((text, index) => {
      this.#seq += 1;
      const place = { transfer: this.#transfers, index, total: pieces.length };
      return JSON.stringify({ type: 'chunk', ...envelope, seq: this.#seq, ...place, text });
    });
  }

  #sendInOrder(line: string): void {
    if (this.#behaviour === 'reorder' && this.#heldBack === null) {
      this.#heldBack = line;
      this.sendLine(JSON.stringify({ ...JSON.parse(line), seq: this.#seq + 1 }));
      return;
    }
    if (this.#heldBack !== null) this.sendLine(this.#heldBack);
    this.#heldBack = null;
    this.sendLine(line);
    if (this.#behaviour === 'replay') this.sendLine(line);
  }

  /** Writes as fast as the stream takes it, until it is cut. */
  #pour(makeLine: () => string): void {
    const again = () => {
      while (!this.#stream.destroyed && this.#stream.write(`${makeLine()}\n`));
    };
    this.#stream.on('drain', again);
    again();
  }
}
