// The seed by which a cloud image's cloud-init learns who it is: the NoCloud data source, one small read-only image.
//
// Source: cloud-init's documentation, "NoCloud": a file system of iso9660 or vfat labelled CIDATA, holding `user-data` and `meta-data`
// and, where there are any, `vendor-data` and `network-config` at its root.
import { chmod, chown, readFile } from 'node:fs/promises';
import { writeDurably } from '../base/durable-file.ts';
import { SEED_FILE_BYTES_MAX } from '../base/limits.ts';
import { DriveError, systemCode } from './drive-error.ts';
import type { Owner } from './drive-folder.ts';
import { buildIso, type IsoEntry } from './iso9660.ts';

/** What cloud-init reads, as it stands: who renders it answers for its meaning. */
export type SeedFiles = {
  /** A `#cloud-config`, a script, MIME, or any of them packed with gzip; may be empty. */
  readonly userData: Uint8Array | string;
  /** YAML or JSON with an `instance-id`: another one makes cloud-init run its once-per-instance steps again. */
  readonly metaData: string;
  readonly vendorData?: Uint8Array | string;
  /** Network configuration, version 1 or 2. */
  readonly networkConfig?: string;
};

export type SeedOptions = {
  readonly files: SeedFiles;
  /** The image's own path; its folder exists. */
  readonly path: string;
  /** Who runs QEMU: its group may read the image. Without it only our own user can. */
  readonly owner?: Owner;
};

/** The label by which cloud-init finds the seed; it takes upper and lower case. */
export const SEED_LABEL = 'CIDATA';

/** The image of a seed: equal files give equal bytes. Throws DriveError `usage/seed`. */
export function buildSeed(files: SeedFiles): Uint8Array {
  const { userData, metaData, vendorData, networkConfig } = files;
  if (!hasInstanceId(metaData)) {
    throw new DriveError('usage/seed', 'the meta-data of the seed has no instance-id', {
      next: 'give it one that changes when the guest is to be set up anew',
    });
  }
  const entries = [
    ...seedEntry('user-data', userData),
    ...seedEntry('meta-data', metaData),
    ...seedEntry('vendor-data', vendorData),
    ...seedEntry('network-config', networkConfig),
  ];
  // All files are inline, so that the metadata is the whole image.
  return buildIso(entries, { label: SEED_LABEL }).metadata;
}

/**
 * Writes a seed durably, readable for root and the owner's group only: what cloud-init is told is often secret. A seed that
 * is there already with these bytes is left alone. Throws DriveError `usage/seed`, or the file system's error.
 */
export async function writeSeed({ files, path, owner }: SeedOptions): Promise<{ readonly sizeBytes: number }> {
  const image = buildSeed(files);
  if (!(await holds(path, image))) await writeDurably(path, image, 0o400);
  if (owner !== undefined) await chown(path, 0, owner.gid);
  await chmod(path, owner === undefined ? 0o400 : 0o440);
  return { sizeBytes: image.length };
}

async function holds(path: string, image: Uint8Array): Promise<boolean> {
  try {
    return (await readFile(path)).equals(image);
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return false;
    throw error;
  }
}

function seedEntry(name: string, content: Uint8Array | string | undefined): IsoEntry[] {
  if (content === undefined) return [];
  const bytes = typeof content === 'string' ? Buffer.from(content, 'utf8') : content;
  if (bytes.length > SEED_FILE_BYTES_MAX) {
    throw new DriveError(
      'usage/seed',
      `the ${name} of the seed has ${bytes.length} bytes, the limit is ${SEED_FILE_BYTES_MAX}`,
    );
  }
  // Any file may hold a password, and only root has business with it in the guest.
  return [{ path: `/${name}`, mode: 0o400, sizeBytes: bytes.length, source: { kind: 'inline', bytes } }];
}

/** A field of the top level, in YAML with or without quotes; its value on the same line. An empty one is none. */
const YAML_INSTANCE_ID =
  /^(?:instance-id|"instance-id"|'instance-id')[ \t]*:[ \t]+(?!(?:""|''|~|null|#.*)?[ \t\r]*$)\S/m;

function hasInstanceId(metaData: string): boolean {
  // YAML contains JSON, but there a field need not start a line.
  return metaData.trimStart().startsWith('{') ? hasJsonInstanceId(metaData) : YAML_INSTANCE_ID.test(metaData);
}

function hasJsonInstanceId(text: string): boolean {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== 'object' || value === null || !('instance-id' in value)) return false;
    const id = value['instance-id'];
    return typeof id === 'number' || (typeof id === 'string' && id !== '');
  } catch {
    return false;
  }
}
