// The first start over a restored backup: nothing that the journal says of VMs that run is believed, as after a reboot of the host.
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { isoTime } from '../src/base/clock.ts';
import { syncFolder } from '../src/base/durable-file.ts';
import { describeError } from '../src/base/errors.ts';
import { makeParser, parseJson } from '../src/base/parse.ts';
import { HOST_NAMESPACE, namespaceKey } from '../src/hypervisor/namespace.ts';
import type { Namespace } from '../src/hypervisor/vm-spec.ts';
import { namespaceOf } from '../src/update/taps.ts';
import { RESTORED_NAME } from './backup-manifest.ts';
import type { HostRooms } from './host-rooms.ts';

const RestoredSchema = Type.Object({
  format: Type.Literal('pratique.restored/1'),
  madeAtMs: Type.Integer(),
  restoredAtMs: Type.Integer(),
});
type Restored = Static<typeof RestoredSchema>;

const parseRestored = makeParser(RestoredSchema, 'host-fault/restored');

type Rooms = Pick<HostRooms, 'config' | 'journal' | 'fenceFor' | 'log' | 'audit' | 'licenses'>;

/**
 * Before VMs are taken over: puts every tap back behind the fence, so that no VM counts as plugged in by what an old journal says. Nor
 * does a seat count that an old database says is held: it may have been revoked, or given back and be another's by now.
 * The returned function ends the matter once they were taken over; until then each start does it again. Null: no restore.
 */
export async function beginAfterRestore(rooms: Rooms): Promise<(() => Promise<void>) | null> {
  const { config, log, audit } = rooms;
  const path = join(config.dataFolder, RESTORED_NAME);
  const restored = await readRestored(path);
  if (restored === null) return null;
  await expelAll(rooms);
  rooms.licenses?.book.doubt();
  const detail = `the data folder was restored at ${isoTime(restored.restoredAtMs)} from a backup of ${isoTime(restored.madeAtMs)}`;
  log.warn({ detail }, 'the first start over a restored backup: every gate is closed');
  return async () => {
    await audit.append({ kind: 'operator', actor: 'restore', action: 'restored', detail });
    await rm(path);
    await syncFolder(config.dataFolder);
  };
}

async function readRestored(path: string): Promise<Restored | null> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return null;
    throw error;
  });
  return text === null ? null : parseRestored(parseJson(text, path, 'host-fault/restored'), path);
}

/** Also taps of VMs that the backup does not know, in the host's network and in every namespace that it knows. A fence that cannot be read admits nobody who is taken over, either. */
async function expelAll({ journal, fenceFor, log }: Rooms): Promise<void> {
  const namespaces = new Map<string, Namespace>([[namespaceKey(HOST_NAMESPACE), HOST_NAMESPACE]]);
  for (const { spec } of journal.load()) namespaces.set(namespaceKey(namespaceOf(spec)), namespaceOf(spec));
  for (const namespace of namespaces.values()) {
    try {
      const fence = await fenceFor(namespace);
      await fence.expel([...(await fence.verify()).admitted]);
    } catch (error) {
      log.error({ detail: describeError(error) }, 'a fence could not be closed after a restore');
    }
  }
}
