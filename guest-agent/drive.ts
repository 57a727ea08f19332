// The drive: found by its volume label, mounted read-only, believed only if its manifest is the one the host announced.
import { findShapeFault } from '../src/base/json-shape.ts';
import {
  AGENT_DRIVE_LOOK_MAX_MS,
  AGENT_DRIVE_LOOK_MIN_MS,
  AGENT_DRIVE_MISMATCH_WAIT_MS,
  AGENT_DRIVE_WAIT_MS,
  MANIFEST_BYTES_MAX,
} from '../src/base/limits.ts';
import type { HostBodyOf } from '../src/guest/messages.ts';
import type { Manifest } from '../src/model/manifest.ts';
import { digestOfBytes, makeFolders, readBytes, readLine } from './durable.ts';
import type { Paths } from './paths.ts';
import { AgentError, type Platform } from './platform/platform.ts';
import { EMBEDDED } from './schemas.ts';

/** What the manifest must say of itself. */
export type Expected = Pick<HostBodyOf<'offer'>, 'run' | 'planDigest' | 'manifestDigest' | 'label'> & {
  readonly vm: string;
};

export type VerifiedDrive = {
  /** Folder under which the drive's paths stand. */
  readonly folder: string;
  readonly manifest: Manifest;
};

/** ISO 9660 (ECMA-119): the primary volume descriptor is sector 16; its identifier is at byte 1, its label at byte 40. */
const DESCRIPTOR_OFFSET = 16 * 2048;
const DESCRIPTOR_BYTES = 2048;
const LABEL_OFFSET = 40;
const LABEL_BYTES = 32;
/** Block devices that cannot be the drive and may be slow to ask. */
const NO_DRIVE = /^(ram|zram|fd|md|dm-)/;

/** Volume label of an ISO 9660 image or device; null if it is none or cannot be read. */
export function isoLabel(platform: Platform, device: string): string | null {
  const bytes = new Uint8Array(DESCRIPTOR_BYTES);
  try {
    const file = platform.files.open(device);
    try {
      file.seek(DESCRIPTOR_OFFSET);
      if (file.read(bytes) < LABEL_OFFSET + LABEL_BYTES) return null;
    } finally {
      file.close();
    }
  } catch {
    return null; // No medium, or gone again.
  }
  if (bytes[0] !== 1 || platform.decode(bytes.subarray(1, 6)) !== 'CD001') return null;
  return platform.decode(bytes.subarray(LABEL_OFFSET, LABEL_OFFSET + LABEL_BYTES)).trimEnd();
}

/** Devices with the given label. */
function findDevices(platform: Platform, paths: Paths, label: string): readonly string[] {
  return platform.files
    .list(`${paths.sys}/block`)
    .filter((name) => !NO_DRIVE.test(name) && readLine(platform, `${paths.sys}/block/${name}/size`) !== '0')
    .map((name) => `${paths.dev}/${name.replaceAll('!', '/')}`)
    .filter((device) => isoLabel(platform, device) === label);
}

function lookAfterMs(waitedMs: number): number {
  return Math.min(AGENT_DRIVE_LOOK_MAX_MS, Math.max(AGENT_DRIVE_LOOK_MIN_MS, waitedMs / 10));
}

export class Drive {
  readonly #platform: Platform;
  readonly #paths: Paths;
  #isMounted = false;

  constructor(platform: Platform, paths: Paths) {
    this.#platform = platform;
    this.#paths = paths;
  }

  /** Waits for the drive and mounts it. Throws AgentError `no-drive`, `mount-failed`, or why its manifest is refused. */
  async open(expected: Expected): Promise<VerifiedDrive> {
    const { clock } = this.#platform;
    const startMs = clock.monotonicMs();
    let refusal: AgentError | null = null;
    let refusedAtMs = 0;
    for (;;) {
      const found = this.#tryDevices(expected);
      if (found instanceof AgentError) {
        refusedAtMs = refusal === null ? clock.monotonicMs() : refusedAtMs;
        refusal = found;
      } else if (found !== null) {
        return found;
      }
      const nowMs = clock.monotonicMs();
      if (refusal !== null && nowMs - refusedAtMs >= AGENT_DRIVE_MISMATCH_WAIT_MS) throw refusal;
      if (nowMs - startMs >= AGENT_DRIVE_WAIT_MS) {
        throw refusal ?? new AgentError('no-drive', `no drive with the label ${expected.label} appeared`);
      }
      await clock.sleep(lookAfterMs(nowMs - startMs));
    }
  }

  /** Unmounts the drive, also one that an earlier process of this boot mounted. */
  release(): void {
    if (this.#paths.driveFolder !== null) return;
    try {
      this.#platform.unmount(this.#folder(), { lazy: false });
    } catch {
      // Something in it is still open (a program left running), or nothing is mounted: let go of it in any case.
      try {
        this.#platform.unmount(this.#folder(), { lazy: true });
      } catch (error) {
        if (this.#isMounted) throw error;
      }
    }
    this.#isMounted = false;
  }

  #folder(): string {
    return this.#paths.driveFolder ?? `${this.#paths.runtime}/drive`;
  }

  /** The verified drive, why the last candidate was refused, or null when there is no candidate. */
  #tryDevices(expected: Expected): VerifiedDrive | AgentError | null {
    if (this.#paths.driveFolder !== null) return this.#verify(expected);
    let refusal: AgentError | null = null;
    for (const device of findDevices(this.#platform, this.#paths, expected.label)) {
      this.release();
      const found = this.#mount(device) ?? this.#verify(expected);
      if (!(found instanceof AgentError)) return found;
      refusal = found;
      this.release();
    }
    return refusal;
  }

  #mount(device: string): AgentError | null {
    makeFolders(this.#platform, this.#folder());
    try {
      this.#platform.mount(device, this.#folder(), 'iso9660');
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      return new AgentError('mount-failed', `the drive could not be mounted: ${why}`, cause);
    }
    this.#isMounted = true;
    return null;
  }

  #verify(expected: Expected): VerifiedDrive | AgentError {
    const folder = this.#folder();
    try {
      return { folder, manifest: readManifest(this.#platform, `${folder}/manifest.json`, expected) };
    } catch (error) {
      if (error instanceof AgentError) return error;
      throw error;
    }
  }
}

/** Reads a manifest and believes it only if it is the announced one. Throws AgentError `manifest-…`. */
export function readManifest(platform: Platform, path: string, expected: Expected): Manifest {
  const bytes = readBytes(platform, path, MANIFEST_BYTES_MAX);
  if (bytes === null) throw new AgentError('manifest-missing', 'the drive has no manifest.json');
  if (digestOfBytes(platform, bytes) !== expected.manifestDigest) {
    throw new AgentError('manifest-digest', 'the manifest on the drive is not the one the host announced');
  }
  let value: unknown;
  try {
    value = JSON.parse(platform.decode(bytes));
  } catch {
    throw new AgentError('manifest-malformed', 'the manifest is not JSON');
  }
  const fault = findShapeFault(EMBEDDED.manifest, value);
  if (fault !== null) throw new AgentError('manifest-malformed', `the manifest: ${fault.field} ${fault.why}`);
  // The cast holds: the value fits the schema that Manifest is derived from.
  const manifest = value as Manifest;
  if (manifest.run !== expected.run) throw new AgentError('manifest-wrong-run', 'the manifest is of another run');
  if (manifest.vm !== expected.vm) throw new AgentError('manifest-wrong-vm', 'the manifest is for another VM');
  if (manifest.planDigest !== expected.planDigest) {
    throw new AgentError('manifest-wrong-plan', 'the manifest is of another plan');
  }
  const ids = new Set(manifest.items.map((item) => item.id));
  if (ids.size !== manifest.items.length)
    throw new AgentError('manifest-malformed', 'the manifest names an item twice');
  const { config = [], configRemoved = [] } = manifest;
  const names = [...config.map(({ item }) => item), ...configRemoved];
  if (new Set(names).size !== names.length)
    throw new AgentError('manifest-malformed', 'the manifest names a configuration item twice');
  return manifest;
}
