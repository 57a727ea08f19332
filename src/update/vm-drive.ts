// The drive of one VM: its plan's bytes in the store, the image built from them, and what is attached to the VM now.
import { join } from 'node:path';
import type { Digest } from '../base/digest-text.ts';
import { classifyError, describeError } from '../base/errors.ts';
import { BLOB_DOUBT_INTERVAL_MS, BLOB_DOUBT_REST } from '../base/limits.ts';
import { counted, printable } from '../base/printable.ts';
import { type BuiltDrive, type DriveArchive, DriveError, licensesOf } from '../drive/drive.ts';
import type { RunningVm } from '../hypervisor/hypervisor.ts';
import type { VmSpec } from '../hypervisor/vm-spec.ts';
import type { DriveFrontEnd, DriveSource } from '../model/drive.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import { configIdsOf, type Plan, planDigest } from '../model/plan.ts';
import type { Policy } from '../model/policy.ts';
import type { Trouble } from '../model/quarantine.ts';
import { configForDrive } from './drive-config.ts';
import { chooseFrontEnd } from './drive-front-end.ts';
import { fetchPlan } from './fetch-plan.ts';
import { RunError, type Runner } from './runner.ts';
import { bringSignedArchives } from './signed-archives.ts';
import type { Run } from './state.ts';
import { troubleOf, VmExport } from './vm-export.ts';
import type { VmRunDeps } from './vm-run-deps.ts';
import { explainQuarantine } from './why.ts';

export type DriveOwner = {
  readonly vm: VmId;
  readonly spec: VmSpec;
  readonly uid: number;
  readonly note: Runner['note'];
  /** The VM's policy now; the operator may change it. */
  readonly policy: () => Policy;
  readonly running: () => RunningVm | null;
  /** Nobody serves the attached drive any more. */
  readonly onLost: (reason: Trouble) => void;
};

/** What the drive of a VM is made from, and where it stands. */
export class VmDrive {
  readonly #deps: VmRunDeps;
  readonly #owner: DriveOwner;
  /** One pin per VM, not per run: whatever ended the run before, its blobs go when the next one is fetched. */
  readonly #runPin: string;
  readonly #stagePin: string;
  readonly #export: VmExport;
  /** What is done to the VM's device happens one after another. */
  #devices: Promise<unknown> = Promise.resolve();
  /** The signed files of a run's drive, so that each of its offers shows the same ones. */
  #signed: { readonly run: RunId; readonly archives: readonly DriveArchive[] } | null = null;
  /** The manifest of the drive that is attached; `unknown` after a restart of the daemon that found one, `half` where attaching failed midway. */
  #attached: Digest | 'unknown' | 'half' | null = null;
  /** On the monotonic clock: until then a guest's word is no reason to read the blobs again. */
  #doubtAgainMs = Number.NEGATIVE_INFINITY;

  constructor(deps: VmRunDeps, owner: DriveOwner) {
    this.#deps = deps;
    this.#owner = owner;
    this.#runPin = `run:${owner.vm}`;
    this.#stagePin = `stage:${owner.vm}`;
    this.#export = new VmExport(deps, { ...owner, reopen: (source) => this.#reopen(source) });
  }

  /** Whether the guest may see a drive of ours. */
  get isAttached(): boolean {
    return this.#attached !== null;
  }

  /** Looks whether a VM that was taken over has a drive. */
  async find(running: RunningVm): Promise<void> {
    this.#attached = (await running.hasDrive()) ? 'unknown' : null;
    await (this.#attached === null ? this.#export.withdraw() : this.#export.keep());
  }

  /** The VM is gone, or starts without a drive. */
  async forgetAttached(): Promise<void> {
    this.#attached = null;
    await this.#export.withdraw();
  }

  /** Gives back what the host keeps for this VM. */
  async forget(): Promise<void> {
    const { store, drives } = this.#deps;
    store.unpin(this.#runPin);
    store.unpin(this.#stagePin);
    await this.#export.withdraw();
    await drives.remove(this.#folder());
  }

  /** Brings the bytes of a plan into the store and keeps them there, for the run or until the VM starts. Null, or why not. */
  async fetch(plan: Plan, purpose: 'run' | 'stage', signal: AbortSignal): Promise<Trouble | null> {
    const { store, vendors, clock, inspections, seats, blobTerms } = this.#deps;
    // Whatever the store has for others: without a lease of its own nothing is brought for this VM.
    const refusal = this.#export.refusalOf(licensesOf(plan));
    if (refusal !== null) return refusal;
    const owner = purpose === 'run' ? this.#runPin : this.#stagePin;
    store.unpin(owner); // Of the plan before; nothing is collected between this and the pin that follows at once.
    const onProgress = (done: number, total: number) => {
      this.#owner.note('progress', 'download', { item: 'download', phase: 'download', done, total });
    };
    const terms = blobTerms === undefined ? {} : { terms: blobTerms };
    const around = { store, vendors: vendors(), clock, inspections, ...terms };
    const trouble = await fetchPlan({ plan, owner, signal, onProgress, ...around });
    if (trouble === null) {
      for (const { release } of plan.items)
        if (release.license !== undefined)
          seats?.countFetch(this.#owner.vm, release.license, release.artifact.sizeBytes);
    }
    if (trouble !== null || purpose === 'stage') return trouble;
    return await this.#fetchSigned(plan, signal);
  }

  async #fetchSigned(plan: Plan, signal: AbortSignal): Promise<Trouble | null> {
    try {
      await this.#archivesOf(plan, signal);
      return null;
    } catch (error) {
      if (signal.aborted) throw error;
      const detail = `the vendor's signed files: ${describeError(error)}`;
      const vendor = plan.items.find((item) => item.release.install.action === 'debian-package')?.release.vendor;
      if (classifyError(error).blame === 'vendor' && vendor !== undefined)
        return { kind: 'vendor-unavailable', vendor, detail };
      return { kind: 'host-failure', step: 'fetch', detail };
    }
  }

  /**
   * Where the policy wants the guest's own apt to verify: the archives that it does that from. The same ones for the whole run,
   * whatever the vendor publishes meanwhile, as long as the store has them; a daemon that started anew asks again.
   */
  async #archivesOf(plan: Plan, signal: AbortSignal): Promise<readonly DriveArchive[]> {
    if (this.#owner.policy().apt !== 'vendor-verified') return [];
    const { store, vendors } = this.#deps;
    const known = this.#signed?.run === plan.run ? this.#signed.archives : null;
    const digests = known?.flatMap(({ files }) => files.map(({ digest }) => digest)) ?? [];
    if (known !== null && digests.every((digest) => store.has(digest))) {
      store.pin(this.#runPin, digests);
      return known;
    }
    const archives = await bringSignedArchives({ plan, vendors: vendors(), store, owner: this.#runPin, signal });
    this.#signed = { run: plan.run, archives };
    return archives;
  }

  /** Builds the drive of the run's plan and attaches it, unless this very drive is attached already. The manifest's digest. */
  async attach(
    run: Run,
    plan: Plan,
    guest: { readonly running: RunningVm; readonly reported: Inventory | null },
    signal: AbortSignal,
  ): Promise<Digest> {
    try {
      return await this.#attach(run, plan, guest, signal);
    } catch (error) {
      const trouble = troubleOf(error);
      if (trouble === null) throw error;
      throw new RunError('refused/license', 'the drive may not be shown', { cause: error, trouble });
    }
  }

  async #attach(
    run: Run,
    plan: Plan,
    { running, reported }: { readonly running: RunningVm; readonly reported: Inventory | null },
    signal: AbortSignal,
  ): Promise<Digest> {
    const drive = await this.#buildSound(run.run, plan, signal);
    const { manifestDigest } = drive;
    // What was found attached is the last that was announced. Another manifest must never be announced with the old drive.
    const isFound = this.#attached === 'unknown' && run.manifests.at(-1) === manifestDigest;
    let frontEnd: DriveFrontEnd | null = null;
    if (this.#attached === manifestDigest || isFound) await this.#export.ensure(drive, plan);
    else {
      // The old one is gone, and nobody serves it any more, before anybody serves the new one.
      await this.detach(running);
      frontEnd = chooseFrontEnd({
        wanted: this.#owner.spec.drive?.frontEnd,
        offered: running.driveFrontEnds,
        known: reported?.abilities.drives,
      });
      await this.#show(running, drive, plan, frontEnd);
    }
    this.#attached = manifestDigest;
    const { vm } = this.#owner;
    const isLive = run.liveGrant !== null;
    const offer = { kind: 'offer', vm, run: run.run, planDigest: planDigest(plan), manifestDigest } as const;
    await this.#deps.audit.append(isLive ? { ...offer, isLive } : offer);
    const way = frontEnd === null ? this.#export.transport : `${this.#export.transport}, ${frontEnd}`;
    this.#owner.note(
      'state',
      `a drive with ${driveText(plan)} is attached (${way})${isLive ? ' to a VM that is plugged in' : ''}`,
    );
    return manifestDigest;
  }

  async #show(running: RunningVm, drive: BuiltDrive, plan: Plan, frontEnd: DriveFrontEnd): Promise<void> {
    const source = await this.#export.show(drive, plan);
    try {
      await this.#inTurn(() => running.attachDrive({ source, frontEnd }));
    } catch (error) {
      // QEMU may have done it all the same, or not say: then it is taken away before another drive is shown, or the gate opens.
      const isLeft = await this.#inTurn(() => running.hasDrive()).catch(() => true);
      // Where nothing is attached, what goes on being served would stand in the way of the next drive.
      if (isLeft) this.#attached = 'half';
      else await this.#export.withdraw();
      throw error;
    }
  }

  /** Takes the drive away, by surprise if the guest will not let go. `isUnanswered`: its agent was asked to, and said nothing. */
  async detach(running: RunningVm | null, isUnanswered = false): Promise<void> {
    if (this.#attached === null || running === null) return;
    const { surprise } = await this.#inTurn(async () => {
      const gone = await running.detachDrive();
      this.#attached = null;
      return gone;
    });
    if (surprise) this.#owner.note('warning', 'the guest did not let go of the drive; it was taken away');
    else if (isUnanswered)
      this.#owner.note('warning', 'the agent did not say that it let go of the drive; it was taken away');
    else this.#owner.note('state', 'the drive is detached');
    await this.#export.withdraw();
  }

  /** Under the guest that has it attached; what was detached meanwhile stays so. */
  async #reopen(source: DriveSource): Promise<void> {
    await this.#inTurn(async () => {
      if (this.#attached !== null) await this.#owner.running()?.reopenDrive(source);
    });
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const now = this.#devices.then(work, work);
    this.#devices = now.catch(() => {});
    return await now;
  }

  /**
   * The guest read something else than was announced: what rotted in the store is taken out of it, so that it is fetched anew, and
   * a drive that is detached is made anew, for its own files may be what rotted, or be links to what was replaced since.
   */
  async verifyBlobs(plan: Plan | null): Promise<void> {
    if (this.#attached === null) await this.#deps.drives.remove(this.#folder());
    const { clock } = this.#deps;
    const startMs = clock.monotonicMs();
    if (startMs < this.#doubtAgainMs) return;
    let isDamaged = false;
    try {
      isDamaged = plan !== null && (await this.#takeOutDamaged(plan));
    } finally {
      const endMs = clock.monotonicMs();
      this.#doubtAgainMs = endMs + Math.max(BLOB_DOUBT_INTERVAL_MS, BLOB_DOUBT_REST * (endMs - startMs));
    }
    if (!isDamaged) this.#owner.note('state', "this host's copies of the updates are sound");
  }

  /** After a run: its drive folder and pins go, except those of the run to keep. */
  async cleanUp(options: { readonly keep: RunId | null; readonly isConnected: boolean }): Promise<void> {
    const { store, drives } = this.#deps;
    if (options.keep === null) store.unpin(this.#runPin);
    if (options.isConnected) store.unpin(this.#stagePin);
    if (this.#attached === null) await drives.remove(this.#folder(), options.keep);
  }

  #folder(): string {
    return join(this.#deps.drivesFolder, this.#owner.vm);
  }

  /** Blobs that turn out damaged or gone are fetched anew, once; what is lost again is for somebody to look at. */
  async #buildSound(run: RunId, plan: Plan, signal: AbortSignal): Promise<BuiltDrive> {
    try {
      return await this.#build(run, plan, signal);
    } catch (error) {
      if (!(error instanceof DriveError) || error.digest === undefined) throw error;
      await this.#takeOutDamaged(plan);
      const trouble = await this.fetch(plan, 'run', signal);
      if (trouble !== null) {
        const { reason } = explainQuarantine(this.#owner.vm, trouble, true);
        throw new RunError('host-fault/blob-lost', reason, { cause: error });
      }
      return await this.#build(run, plan, signal);
    }
  }

  async #build(run: RunId, plan: Plan, signal: AbortSignal): Promise<BuiltDrive> {
    const { vm, spec, uid } = this.#owner;
    this.#export.checkLicenses(licensesOf(plan));
    const archives = await this.#archivesOf(plan, signal);
    const config = await configForDrive(plan, this.#deps);
    // Directly to somebody else's QEMU, the drive is shown to whoever we are; what exports it is a process of the VM's own user.
    const isReadByOwn = spec.kind === 'managed' || this.#export.transport !== 'direct';
    const owner = isReadByOwn && process.getuid?.() === 0 ? { uid, gid: uid } : undefined;
    return await this.#deps.drives.build({
      vm,
      run,
      plan,
      planDigest: planDigest(plan),
      blobs: this.#deps.store,
      folder: join(this.#folder(), run),
      ...(owner === undefined ? {} : { owner }),
      ...(archives.length === 0 ? {} : { archives }),
      ...config,
    });
  }

  /** Takes every blob of a plan out of the store that is not what it was; true when there was one. */
  async #takeOutDamaged(plan: Plan): Promise<boolean> {
    const { store } = this.#deps;
    const damaged: string[] = [];
    const signed = this.#signed?.run === plan.run ? this.#signed.archives.flatMap(({ files }) => files) : [];
    const blobs = [
      ...plan.items.map(({ id, release }) => ({ id, digest: release.artifact.digest })),
      ...signed.map(({ path, digest }) => ({ id: path, digest })),
    ];
    for (const { id, digest } of blobs) {
      if (store.has(digest) && !(await store.verify(digest))) damaged.push(id);
    }
    if (damaged.length === 0) return false;
    const names = printable(damaged.join(', '), 400);
    this.#owner.note('warning', `damaged on this host and taken out of its store, to be fetched anew: ${names}`);
    return true;
  }
}

/** What is on a drive, for the timeline. */
function driveText(plan: Plan): string {
  const config = configIdsOf(plan).length;
  if (config === 0) return counted(plan.items.length, 'update');
  const configured = counted(config, 'configuration item');
  return plan.items.length === 0 ? configured : `${counted(plan.items.length, 'update')} and ${configured}`;
}
