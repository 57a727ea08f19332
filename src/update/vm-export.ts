// How a VM's drive reaches its hypervisor where that does not open the store's blobs itself: served by a process outside ours.
import { stat } from 'node:fs/promises';
import { describeError } from '../base/errors.ts';
import {
  type BuiltDrive,
  checkLicenses,
  DriveError,
  type ExportWatcher,
  licensesOf,
  type Owner,
} from '../drive/drive.ts';
import type { VmSpec } from '../hypervisor/vm-spec.ts';
import type { DriveSource, DriveTransport } from '../model/drive.ts';
import type { VmId } from '../model/ids.ts';
import { NO_LICENSES } from '../model/license-check.ts';
import type { Plan } from '../model/plan.ts';
import type { Trouble } from '../model/quarantine.ts';
import { RunError, type Runner } from './runner.ts';
import type { VmRunDeps } from './vm-run-deps.ts';

export type ExportOwner = {
  readonly vm: VmId;
  readonly spec: VmSpec;
  readonly uid: number;
  readonly note: Runner['note'];
  /** Opens the source anew under the guest that has it attached. */
  readonly reopen: (source: DriveSource) => Promise<void>;
  /** Nobody serves the attached drive any more. */
  readonly onLost: (reason: Trouble) => void;
};

/** The export of one VM's drive; with `direct` there is none. */
export class VmExport {
  readonly transport: DriveTransport;
  readonly #deps: VmRunDeps;
  readonly #owner: ExportOwner;

  constructor(deps: VmRunDeps, owner: ExportOwner) {
    this.#deps = deps;
    this.#owner = owner;
    this.transport = owner.spec.drive?.transport ?? 'direct';
  }

  /** Throws DriveError `refused/license` unless the VM may have all of the plan now. */
  checkLicenses(licenses: readonly string[]): void {
    checkLicenses(this.#owner.vm, licenses, this.#deps.checkLicense ?? NO_LICENSES);
  }

  /** What speaks against bringing or showing what these licenses guard now; null: nothing. */
  refusalOf(licenses: readonly string[]): Trouble | null {
    try {
      this.checkLicenses(licenses);
      return null;
    } catch (error) {
      const trouble = troubleOf(error);
      if (trouble === null) throw error;
      return trouble;
    }
  }

  /** Where the hypervisor opens a drive; it is served from now on. Throws DriveError, also when a lease has lapsed since it was built. */
  async show(drive: BuiltDrive, plan: Plan): Promise<DriveSource> {
    const licenses = licensesOf(plan);
    this.checkLicenses(licenses);
    const { transport } = this;
    if (transport === 'direct') return { kind: 'vmdk', path: drive.image.path };
    const { exports } = this.#deps;
    const { vm } = this.#owner;
    if (exports === undefined)
      throw new RunError(
        'usage/drive-transport',
        `${vm}: drives are not exported here, so none can be shown over ${transport}`,
      );
    const owners = await this.#owners();
    return await exports.serve({ vm, drive, transport, licenses, watcher: this.#watcher(), ...owners });
  }

  /** For a drive that is attached already: whoever serves it is there. */
  async ensure(drive: BuiltDrive, plan: Plan): Promise<void> {
    const { exports } = this.#deps;
    if (this.transport === 'direct' || exports === undefined || exports.isServing(this.#owner.vm)) return;
    await this.#owner.reopen(await this.show(drive, plan));
  }

  /** After a start of the daemon, for a drive that was found attached: goes on with what serves it. */
  async keep(): Promise<void> {
    if (this.transport === 'direct') return;
    try {
      const source = await this.#deps.exports?.keep(this.#owner.vm, this.#watcher());
      if (source === null)
        this.#owner.note('warning', 'nobody serves the attached drive; it is served again with the next offer');
    } catch (error) {
      this.#owner.note('warning', `its drive cannot be served again: ${describeError(error)}`);
    }
  }

  /** Nothing is attached any more. What cannot be ended now is ended before another drive is shown, or nothing is. */
  async withdraw(): Promise<void> {
    if (this.transport === 'direct') return;
    try {
      await this.#deps.exports?.withdraw(this.#owner.vm);
    } catch (error) {
      this.#owner.note('warning', `what served its drive could not be cleared away: ${describeError(error)}`);
    }
  }

  /** The process runs as the VM's own user. Who reads is that one too, or whoever runs a QEMU that is not ours: the owner of its monitor. */
  async #owners(): Promise<{ readonly owner?: Owner; readonly reader?: Owner }> {
    const { spec, uid } = this.#owner;
    if (process.getuid?.() !== 0) return {};
    const owner = { uid, gid: uid };
    if (spec.kind === 'managed') return { owner };
    const monitor = await stat(spec.qmpSocket);
    return { owner, reader: { uid: monitor.uid, gid: monitor.gid } };
  }

  #watcher(): ExportWatcher {
    const { note, reopen, onLost } = this.#owner;
    return {
      mayServe: (licenses) => this.checkLicenses(licenses),
      onRestart: async (source, why) => {
        note('warning', `${why}; it was started again`);
        // QEMU's own NBD client finds it again; a file that went away is an error for good until it is opened anew.
        if (source.kind !== 'raw') return;
        try {
          await reopen(source);
        } catch (error) {
          note('warning', `the drive could not be opened anew: ${describeError(error)}`);
        }
      },
      onFailure: (error) => {
        note('warning', `its drive is not served any more: ${describeError(error)}`);
        onLost(troubleOf(error) ?? { kind: 'host-failure', step: 'drive-export', detail: describeError(error) });
      },
    };
  }
}

/** What a run says of an error of the drive where it has a word of its own for it. */
export function troubleOf(error: unknown): Trouble | null {
  if (!(error instanceof DriveError) || error.refusal === undefined) return null;
  return { kind: 'license-refused', ...error.refusal };
}
