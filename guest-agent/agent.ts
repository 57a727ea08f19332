// The agent: answers the host's requests one after the other, and keeps its word over restarts, reboots and new sessions.

import { isDigest } from '../src/base/digest-text.ts';
import {
  AGENT_FLUSH_TIMEOUT_MS,
  AGENT_INIT_REBOOT_TIMEOUT_MS,
  AGENT_KEEP_BOOT_DELAY_MS,
  AGENT_REPAIR_WAIT_MS,
  AGENT_REQUESTS_MAX,
  FREE_TEXT_CHARS_MAX,
} from '../src/base/limits.ts';
import { printable } from '../src/base/printable.ts';
import type { AgentBody, HostBodyOf } from '../src/guest/messages.ts';
import type { Inventory } from '../src/model/inventory.ts';
import {
  type BootState,
  isRebootRequired,
  keepBootState,
  readBootState,
  recordShutdown,
  requireReboot,
} from './boot-state.ts';
import { type Channel, fitsChannel, type HostRequest, openChannel } from './channel.ts';
import { configIds } from './config/apply.ts';
import { forgetPrevious } from './config/records.ts';
import { startDeferredNetwork } from './config/steps.ts';
import { finishUndo, undoFiles } from './config/undo.ts';
import { announce, clearOldAnnouncement, isAdmittedBefore } from './console.ts';
import { Drive, type VerifiedDrive } from './drive.ts';
import { digestOfFile } from './durable.ts';
import { checkHealth } from './health.ts';
import { installManifest } from './install.ts';
import { findUnfitAgent, isReplaced } from './installers/agent-update.ts';
import { recoverBundle } from './installers/bundle.ts';
import { repairPackages } from './installers/debian.ts';
import { restorePolicy, startDeferred } from './installers/service-starts.ts';
import { type AgentIdentity, findProgram, listInstalled, readBootId, takeInventory } from './inventory.ts';
import { type Paths, runFolder } from './paths.ts';
import { AgentError, type Platform } from './platform/platform.ts';
import { findHostPort } from './port.ts';
import { allResults, RunStore } from './run-store.ts';
import type { ConfigJournal, RunRecord } from './schemas.ts';

export type AgentOptions = {
  readonly platform: Platform;
  readonly paths: Paths;
  readonly version: string;
  /** A port to use instead of the one found by name. */
  readonly port: string | null;
  /** The words this process was started with, for the agent that replaces it. */
  readonly args: readonly string[];
};

type Offer = HostBodyOf<'offer'>;
/** Requests that change something: one at a time, in the order they came. */
type Job = Extract<HostRequest, { type: 'offer' | 'release' | 'ask-confirm' | 'reboot' }>;

/** Starts the agent. It runs until the machine stops. Throws AgentError if the guest lacks what the agent cannot do without. */
export function startAgent(options: AgentOptions): void {
  new Agent(options);
}

class Agent {
  readonly #platform: Platform;
  readonly #paths: Paths;
  readonly #options: AgentOptions;
  readonly #boot: string;
  readonly #bootState: BootState;
  readonly #store: RunStore;
  readonly #drive: Drive;
  readonly #channel: Channel;
  readonly #identity: Promise<AgentIdentity>;
  readonly #jobs: Job[] = [];
  /** Ends once dpkg has ended what a power cut broke off; at once when there was nothing. */
  readonly #repaired: Promise<void>;
  /** Whether the host has admitted this boot, so that services may come back at once. */
  #isAdmitted: boolean;
  /** A set of configuration that a power cut broke off: its files are as before, what they stand for is not yet. */
  #undone: ConfigJournal | null = null;
  #isWorking = false;
  #isEnding = false;
  /** The offer at work, and the session that waits for its answer. */
  #offered: { readonly offer: Offer; nonce: string; isVerified: boolean } | null = null;

  constructor(options: AgentOptions) {
    const { platform, paths, version } = options;
    this.#options = options;
    this.#platform = platform;
    this.#paths = paths;
    this.#boot = readBootId(platform, paths);
    if (this.#boot === '')
      throw new AgentError('no-proc', 'the boot id cannot be read; mount /proc before the agent starts');
    this.#recover();
    this.#isAdmitted = isAdmittedBefore(platform, paths, this.#boot);
    this.#bootState = readBootState(platform, paths, this.#boot);
    this.#store = new RunStore(platform, paths);
    this.#drive = new Drive(platform, paths);
    this.#channel = openChannel({
      platform,
      boot: this.#boot,
      agentVersion: version,
      findPort: () => options.port ?? findHostPort(platform, paths),
      listener: {
        opened: ({ vm }) => platform.log(`the host opened a session for ${vm}`),
        request: (r) => this.#take(r),
      },
    });
    this.#identity = this.#identify(version);
    this.#repaired = this.#repair();
    platform.onTerminate(() => void this.#shutDown());
    platform.clock.after(AGENT_KEEP_BOOT_DELAY_MS, () =>
      this.#guard(() => keepBootState(platform, paths, this.#bootState)),
    );
    platform.log(`version ${version}, boot ${this.#boot}`);
  }

  /** Puts right what a power cut or a crash broke off, before anything is reported. */
  #recover(): void {
    this.#guard(() => recoverBundle(this.#platform, this.#paths));
    this.#guard(() => restorePolicy(this.#platform, this.#paths));
    this.#guard(() => {
      this.#undone = undoFiles(this.#platform, this.#paths);
    });
    this.#guard(() => clearOldAnnouncement(this.#platform, this.#paths, this.#boot));
  }

  /** What is being repaired would be reported as broken; but a report must not come too late either. */
  async #repairedOrLate(): Promise<void> {
    await Promise.race([this.#repaired, this.#platform.clock.sleep(AGENT_REPAIR_WAIT_MS)]);
  }

  async #repair(): Promise<void> {
    try {
      // After the first hello, which need not wait for it.
      await this.#platform.clock.sleep(0);
      await repairPackages(this.#platform, this.#paths, this.#isAdmitted);
      const undone = this.#undone;
      if (undone !== null) await finishUndo(this.#platform, this.#paths, undone, this.#isAdmitted);
    } catch (error) {
      this.#platform.log(textOf(error));
    }
  }

  /** Runs a step whose failure must not end the agent. */
  #guard(step: () => void): void {
    try {
      step();
    } catch (error) {
      this.#platform.log(textOf(error));
    }
  }

  async #identify(version: string): Promise<AgentIdentity> {
    try {
      // After the first hello, which need not wait for it.
      await this.#platform.clock.sleep(0);
      const digest = await digestOfFile(this.#platform, this.#platform.selfPath);
      return { version, digest: isDigest(digest) ? digest : null };
    } catch (error) {
      this.#platform.log(textOf(error));
      return { version, digest: null };
    }
  }

  #fault(error: unknown): void {
    const code = error instanceof AgentError ? error.word : 'internal';
    this.#platform.log(textOf(error));
    this.#channel.send({ type: 'fault', code, detail: printable(textOf(error), FREE_TEXT_CHARS_MAX) });
  }

  #take(request: HostRequest): void {
    switch (request.type) {
      case 'ask-inventory':
        void this.#answerInventory();
        return;
      case 'admitted':
        this.#isAdmitted = true;
        this.#guard(() => announce(this.#platform, this.#paths, { word: 'admitted', boot: this.#boot, text: [] }));
        this.#guard(() => forgetPrevious(this.#platform, this.#paths));
        this.#startDeferred().catch((error) => this.#platform.log(textOf(error)));
        return;
      case 'hold': {
        this.#isAdmitted = false;
        const text = [request.code, printable(request.detail, FREE_TEXT_CHARS_MAX)];
        this.#guard(() => announce(this.#platform, this.#paths, { word: 'hold', boot: this.#boot, text }));
        return;
      }
      case 'offer':
        if (!this.#joinOffer(request)) this.#queue(request);
        return;
      case 'release':
      case 'ask-confirm':
      case 'reboot':
        this.#queue(request);
        return;
      default:
        request satisfies never;
    }
  }

  /** What the machine could not do while it was unplugged. */
  async #startDeferred(): Promise<void> {
    await startDeferredNetwork(this.#platform, this.#paths);
    await startDeferred(this.#platform, this.#paths);
  }

  /** An offer that is at work already is not begun again; its answer goes to the session that asked last. */
  #joinOffer(offer: Offer): boolean {
    const offered = this.#offered;
    const session = this.#channel.session();
    if (offered === null || session === null) return false;
    if (offered.offer.run !== offer.run || offered.offer.manifestDigest !== offer.manifestDigest) return false;
    offered.nonce = session.nonce;
    if (offered.isVerified) this.#sendDrive(offer, { state: 'verified' });
    return true;
  }

  #queue(job: Job): void {
    if (this.#jobs.length >= AGENT_REQUESTS_MAX) {
      this.#fault(new AgentError('busy', `${job.type}: too many requests wait already`));
      return;
    }
    this.#jobs.push(job);
    if (!this.#isWorking) void this.#work();
  }

  async #work(): Promise<void> {
    this.#isWorking = true;
    for (let job = this.#jobs.shift(); job !== undefined; job = this.#jobs.shift()) {
      try {
        await this.#do(job);
      } catch (error) {
        this.#fault(error);
      }
    }
    this.#isWorking = false;
  }

  async #do(job: Job): Promise<void> {
    switch (job.type) {
      case 'offer':
        return await this.#install(job);
      case 'release':
        this.#drive.release();
        this.#channel.send({ type: 'drive', run: job.run, manifestDigest: job.manifestDigest, state: 'released' });
        return;
      case 'ask-confirm':
        return await this.#confirm(job);
      case 'reboot':
        await this.#repaired;
        return await this.#reboot();
      default:
        job satisfies never;
    }
  }

  // ---- Reports ----------------------------------------------------------------------------------------------------

  async #takeInventory(): Promise<Inventory> {
    return takeInventory(this.#platform, this.#paths, await this.#identity, this.#bootState);
  }

  async #answerInventory(): Promise<void> {
    try {
      await this.#repairedOrLate();
      const inventory = await this.#takeInventory();
      this.#sendFitting(inventory, (fitting) => ({ type: 'inventory', inventory: fitting }));
    } catch (error) {
      this.#fault(error);
    }
  }

  /** Sends a message with an inventory; what was installed at the last shutdown goes first if both are too long. */
  #sendFitting(inventory: Inventory, bodyOf: (inventory: Inventory) => AgentBody): void {
    const body = bodyOf(inventory);
    const short = fitsChannel(this.#platform, body) ? body : bodyOf({ ...inventory, lastShutdown: null });
    if (!fitsChannel(this.#platform, short))
      throw new AgentError('too-large', 'the inventory is longer than a message may be');
    this.#channel.send(short);
  }

  async #confirm(ask: HostBodyOf<'ask-confirm'>): Promise<void> {
    await this.#repairedOrLate();
    const record = this.#store.ofRun(ask.run);
    const results = record === null ? [] : [...allResults(record)];
    // Before the inventory, which is to be as fresh as it can be.
    const health = ask.health === undefined ? undefined : await checkHealth(this.#platform, this.#paths, ask.health);
    const inventory = await this.#takeInventory();
    this.#sendFitting(inventory, (fitting) => ({
      type: 'confirm',
      run: ask.run,
      planDigest: record?.planDigest ?? ask.planDigest,
      manifestDigest: record?.isFinished === true ? record.manifestDigest : null,
      results,
      inventory: fitting,
      ...(health === undefined ? {} : { health }),
    }));
  }

  #sendDrive(
    offer: Offer,
    answer:
      | { readonly state: 'verified' }
      | { readonly state: 'refused'; readonly code: string; readonly detail: string },
  ): void {
    this.#channel.send({ type: 'drive', run: offer.run, manifestDigest: offer.manifestDigest, ...answer });
  }

  #sendInstalled({ run, manifestDigest, results }: RunRecord): void {
    const products = listInstalled(this.#platform, this.#paths);
    const rebootRequired = isRebootRequired(this.#platform, this.#paths, this.#boot, products);
    this.#channel.send({ type: 'installed', run, manifestDigest, results, rebootRequired });
  }

  // ---- Installing -------------------------------------------------------------------------------------------------

  async #install(offer: Offer): Promise<void> {
    const session = this.#channel.session();
    if (session === null) return; // The host will offer again in its next session.
    const known = this.#store.ofOffer(offer, session.vm);
    if (known?.isFinished === true) {
      this.#sendInstalled(known);
      return;
    }
    const offered = { offer, nonce: session.nonce, isVerified: false };
    this.#offered = offered;
    try {
      const drive = await this.#openDrive(offer, session.vm);
      if (drive === null) return;
      offered.isVerified = true;
      this.#sendDrive(offer, { state: 'verified' });
      await this.#repaired; // The host has its answer by now; an installation may take long.
      await this.#installFrom(drive, offer);
      const record = this.#store.finish();
      await this.#giveWayIfReplaced();
      if (this.#channel.session()?.nonce === offered.nonce) this.#sendInstalled(record);
    } finally {
      this.#offered = null;
    }
  }

  /** Mounts and verifies the drive and notes the run on disk; null after the host was told why not. */
  async #openDrive(offer: Offer, vm: string): Promise<VerifiedDrive | null> {
    try {
      const drive = await this.#drive.open({ ...offer, vm });
      this.#store.begin(offer, drive.manifest.vm);
      return drive;
    } catch (error) {
      if (!(error instanceof AgentError)) throw error;
      this.#platform.log(`the drive is refused (${error.word}): ${error.message}`);
      const detail = printable(error.message, FREE_TEXT_CHARS_MAX);
      this.#sendDrive(offer, { state: 'refused', code: error.word, detail });
      return null;
    }
  }

  /** A package has put another agent in this one's place: it goes on from here, with all results on disk. */
  async #giveWayIfReplaced(): Promise<void> {
    const { digest } = await this.#identity;
    if (digest === null || !(await isReplaced(this.#platform, digest))) return;
    // One that does not start has failed its item for that already, and this one goes on.
    if ((await findUnfitAgent(this.#platform, digest)) !== null) return;
    try {
      await this.#restartAgent();
    } catch (error) {
      this.#platform.log(textOf(error));
    }
  }

  async #installFrom({ folder, manifest }: VerifiedDrive, offer: Offer): Promise<void> {
    const { version, digest } = await this.#identity;
    const configured = configIds(manifest).length;
    this.#platform.log(
      `installing ${manifest.items.length} items, applying ${configured} of configuration, run ${offer.run}`,
    );
    await installManifest({
      platform: this.#platform,
      paths: this.#paths,
      drive: folder,
      manifest,
      done: this.#store.ofRun(offer.run)?.results ?? [],
      ownDigest: digest ?? version,
      keep: (results, items) => {
        // The due reboot first: a result on disk is not looked at again.
        const isDue = results.some((result, index) => result.outcome === 'installed' && needsReboot(items[index]));
        if (isDue) requireReboot(this.#platform, this.#paths, this.#boot);
        this.#store.addResults(results);
      },
      progress: (item, phase, done) => {
        this.#channel.send({
          type: 'progress',
          run: offer.run,
          item: item.id,
          phase,
          done,
          total: manifest.items.length + configured,
        });
      },
      restartAgent: () => this.#restartAgent(),
      isAdmitted: this.#isAdmitted,
      requireReboot: () => requireReboot(this.#platform, this.#paths, this.#boot),
    });
  }

  // ---- Endings ----------------------------------------------------------------------------------------------------

  async #restartAgent(): Promise<never> {
    this.#channel.send({ type: 'bye', reason: 'agent-update' });
    await this.#flush();
    return this.#platform.replaceSelf(this.#platform.selfPath, this.#options.args);
  }

  async #reboot(): Promise<void> {
    this.#isEnding = true;
    this.#recordShutdown();
    this.#channel.send({ type: 'bye', reason: 'reboot' });
    await this.#flush();
    this.#platform.log('restarting the machine');
    await this.#restartMachine();
  }

  /** In order where init can, so that applications end well; by force where it cannot or does not. */
  async #restartMachine(): Promise<void> {
    const { files, clock } = this.#platform;
    const systemctl = findProgram(this.#platform, this.#paths, 'systemctl');
    const init = files.readLink(`${this.#paths.proc}/1/exe`) ?? '';
    if (files.stat(`${runFolder(this.#paths)}/systemd/system`) !== null && systemctl !== null) {
      await this.#platform.run({ argv: [systemctl, 'reboot'], timeoutMs: AGENT_INIT_REBOOT_TIMEOUT_MS });
      await clock.sleep(AGENT_INIT_REBOOT_TIMEOUT_MS);
    } else if (init.endsWith('/busybox')) {
      this.#guard(() => this.#platform.signalInit());
      await clock.sleep(AGENT_INIT_REBOOT_TIMEOUT_MS);
    }
    this.#platform.restartMachine();
  }

  async #shutDown(): Promise<void> {
    if (!this.#isEnding) {
      this.#isEnding = true;
      this.#recordShutdown();
      this.#channel.send({ type: 'bye', reason: 'shutdown' });
      await this.#flush();
    }
    this.#platform.exit(0);
  }

  #recordShutdown(): void {
    this.#guard(() => {
      keepBootState(this.#platform, this.#paths, this.#bootState);
      const products = listInstalled(this.#platform, this.#paths);
      recordShutdown(this.#platform, this.#paths, this.#boot, products);
    });
  }

  /** Waits a moment until the host has taken what was said. */
  async #flush(): Promise<void> {
    const { clock } = this.#platform;
    const endMs = clock.monotonicMs() + AGENT_FLUSH_TIMEOUT_MS;
    while (this.#channel.pendingBytes() > 0 && clock.monotonicMs() < endMs) await clock.sleep(5);
  }
}

function needsReboot(item: { readonly install: { readonly action: string; readonly reboot?: boolean } } | undefined) {
  return item?.install.reboot === true;
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
