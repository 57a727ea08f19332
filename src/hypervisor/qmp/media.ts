// Removable media of a managed VM: trays that stay empty until the VM is admitted.
import { HypervisorError } from '../errors.ts';
import { parseBlock, parseNodes } from './answers.ts';
import type { QmpClient } from './qmp-client.ts';

export type Medium = {
  /** QEMU's id of the tray. */
  readonly device: string;
  /** Resolved path of the image, always raw. */
  readonly path: string;
};

/** Puts every medium into its tray; those inside stay. */
export async function insertMedia(qmp: QmpClient, media: readonly Medium[]): Promise<void> {
  if (media.length === 0) return;
  const inside = await insertedNodes(qmp);
  for (const [index, { device, path }] of media.entries()) {
    const node = nodeOf(index);
    if (inside.get(device) === node) continue;
    await removeNode(qmp, node);
    const file = { driver: 'file', filename: path, 'read-only': true };
    await qmp.execute('blockdev-add', { driver: 'raw', 'node-name': node, 'read-only': true, file });
    await qmp.execute('blockdev-open-tray', { id: device, force: true });
    await qmp.execute('blockdev-insert-medium', { id: device, 'node-name': node });
    await qmp.execute('blockdev-close-tray', { id: device });
  }
}

/** Empties every tray, whether the guest has locked it or not, and looks whether it is empty. */
export async function ejectMedia(qmp: QmpClient, media: readonly Medium[]): Promise<void> {
  if (media.length === 0) return;
  const inside = await insertedNodes(qmp);
  for (const [index, { device }] of media.entries()) {
    if (inside.has(device)) {
      await qmp.execute('blockdev-open-tray', { id: device, force: true });
      await qmp.execute('blockdev-remove-medium', { id: device });
      await qmp.execute('blockdev-close-tray', { id: device });
    }
    await removeNode(qmp, nodeOf(index));
  }
  const left = await insertedNodes(qmp);
  const full = media.find(({ device }) => left.has(device));
  if (full !== undefined) throw new HypervisorError('host-fault/media', `the tray ${full.device} is not empty`);
}

function nodeOf(index: number): string {
  return `pratique-medium${index}`;
}

/** Node in each tray, by the tray's id. */
async function insertedNodes(qmp: QmpClient): Promise<ReadonlyMap<string, string>> {
  const blocks = parseBlock(await qmp.execute('query-block'), 'query-block');
  return new Map(
    blocks.flatMap((block) =>
      block.inserted === undefined
        ? []
        : [[(block.qdev ?? '').replace('/machine/peripheral/', ''), block.inserted['node-name'] ?? '']],
    ),
  );
}

async function removeNode(qmp: QmpClient, name: string): Promise<void> {
  const nodes = parseNodes(await qmp.execute('query-named-block-nodes', { flat: true }), 'query-named-block-nodes');
  if (nodes.some((node) => node['node-name'] === name)) await qmp.execute('blockdev-del', { 'node-name': name });
}
