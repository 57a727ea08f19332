// The drive in QEMU's block layer: an image node over the source, and a front node over it that the guest's device reads.
import type { Clock } from '../../base/clock.ts';
import { DRIVE_RECONNECT_DELAY_S, NODE_LOOK_MS, NODE_RELEASE_TIMEOUT_MS } from '../../base/limits.ts';
import { waitUntil } from '../../base/wait-until.ts';
import type { DriveSource } from '../../model/drive.ts';
import { HypervisorError } from '../errors.ts';
import { parseNodes } from './answers.ts';
import type { QmpClient } from './qmp-client.ts';

/** What the device reads: a raw node over the image, so that the image can be taken away under a guest that does not let go. */
export const FRONT_NODE = 'pratique-front';
/** Two names, so that an image can be opened anew before the old one is let go. */
const IMAGE_NODES = ['pratique-image', 'pratique-image2'] as const;
const EMPTY_NODE = 'pratique-empty';

type Options = Readonly<Record<string, unknown>>;
type ImageName = (typeof IMAGE_NODES)[number];

/** An image node, and what QEMU says it has open. */
export type OpenImage = { readonly name: ImageName; readonly file: string };

/** Whether QEMU has an image of ours open, in use or left over. */
export async function hasImage(qmp: QmpClient): Promise<boolean> {
  return (await openImages(qmp)).length > 0;
}

/**
 * The image that is in use. Another one, which a step that was broken off has left open, is closed: QEMU itself refuses to close
 * what is in use, and says so nowhere else.
 */
export async function imageInUse(qmp: QmpClient): Promise<OpenImage | null> {
  let used: OpenImage | null = null;
  for (const image of await openImages(qmp)) if (!(await removeNode(qmp, image.name))) used = image;
  return used;
}

/** Opens the source and puts the front node over it. */
export async function addNodes(qmp: QmpClient, source: DriveSource): Promise<void> {
  await qmp.execute('blockdev-add', imageNode(IMAGE_NODES[0], source));
  await qmp.execute('blockdev-add', frontNode(IMAGE_NODES[0]));
}

/** Puts the source, opened anew, under the front node in the place of the image in use. When that fails, all is as before. */
export async function exchangeImage(qmp: QmpClient, present: OpenImage, source: DriveSource): Promise<void> {
  const name = IMAGE_NODES[0] === present.name ? IMAGE_NODES[1] : IMAGE_NODES[0];
  await qmp.execute('blockdev-add', imageNode(name, source));
  try {
    await qmp.execute('blockdev-reopen', { options: [frontNode(name)] });
  } catch (error) {
    await removeNode(qmp, name);
    throw error;
  }
  await qmp.execute('blockdev-del', { 'node-name': present.name });
}

/** Puts nothing under the front node: a guest that holds its device reads zeroes from it, and the image is closed. */
export async function withdrawImage(qmp: QmpClient): Promise<void> {
  const present = await nodeNames(qmp);
  if (!present.has(EMPTY_NODE)) {
    const empty = { driver: 'null-co', 'node-name': EMPTY_NODE, 'read-only': true, 'read-zeroes': true };
    await qmp.execute('blockdev-add', empty);
  }
  await qmp.execute('blockdev-reopen', { options: [frontNode(EMPTY_NODE)] });
  for (const name of IMAGE_NODES) if (present.has(name)) await qmp.execute('blockdev-del', { 'node-name': name });
}

/** Removes every node of ours, once QEMU has let go of the device that used them. */
export async function removeNodes(qmp: QmpClient, clock: Clock): Promise<void> {
  const present = await nodeNames(qmp);
  for (const name of [FRONT_NODE, ...IMAGE_NODES, EMPTY_NODE]) {
    if (present.has(name)) {
      await waitUntil(() => removeNode(qmp, name), clock, NODE_RELEASE_TIMEOUT_MS, NODE_LOOK_MS);
    }
  }
}

/** The name by which QEMU tells what an image node has open; for NBD it escapes nothing. */
export function fileOf(source: DriveSource): string {
  return source.kind === 'nbd' ? `nbd+unix:///${source.exportName}?socket=${source.socket}` : source.path;
}

/** The image node of a source. read-only must stand on it: otherwise QEMU asks for the write lock of blobs that other VMs read. */
export function imageNode(name: string, source: DriveSource): Options {
  const file =
    source.kind === 'nbd'
      ? {
          driver: 'nbd',
          server: { type: 'unix', path: source.socket },
          export: source.exportName,
          // Without it a server that was started again is an I/O error for good.
          'reconnect-delay': DRIVE_RECONNECT_DELAY_S,
          'read-only': true,
        }
      : { driver: 'file', filename: source.path, 'read-only': true };
  const driver = source.kind === 'vmdk' ? 'vmdk' : 'raw';
  return { driver, 'node-name': name, 'read-only': true, file };
}

function frontNode(imageName: string): Options {
  return { driver: 'raw', 'node-name': FRONT_NODE, 'read-only': true, file: imageName };
}

async function openImages(qmp: QmpClient): Promise<readonly OpenImage[]> {
  return (await nodes(qmp)).flatMap((node) => {
    const name = IMAGE_NODES.find((one) => one === node['node-name']);
    return name === undefined ? [] : [{ name, file: node.file ?? '' }];
  });
}

async function nodes(qmp: QmpClient) {
  return parseNodes(await qmp.execute('query-named-block-nodes', { flat: true }), 'query-named-block-nodes');
}

async function nodeNames(qmp: QmpClient): Promise<ReadonlySet<string | undefined>> {
  return new Set((await nodes(qmp)).map((node) => node['node-name']));
}

/** Removes a node; false while a node over it, or a device that is being finalised (DEVICE_DELETED may come before), uses it. */
export async function removeNode(qmp: QmpClient, name: string): Promise<boolean> {
  try {
    await qmp.execute('blockdev-del', { 'node-name': name });
    return true;
  } catch (error) {
    if (error instanceof HypervisorError && /in use/.test(error.message)) return false;
    throw error;
  }
}
