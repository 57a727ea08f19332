// The cloud-init seeds of VMs whose guests have it: made when a VM starts, taken back once it was admitted with what is in it.
//
//   start ─► seed written, instance id noted ─► … ─► gate open: noted as done ─► a while later, or at the next start: image wiped
//   start with another instance id: a new seed; with the same one: none
import { mkdir, open, readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import type { Clock } from '../src/base/clock.ts';
import { writeDurably } from '../src/base/durable-file.ts';
import { describeError } from '../src/base/errors.ts';
import { SEED_READ_MS } from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import { makeParser, parseJson } from '../src/base/parse.ts';
import { writeSeed } from '../src/drive/seed.ts';
import { GuestConfigError } from '../src/guest-config/error.ts';
import { instanceId, renderNoCloud } from '../src/guest-config/nocloud.ts';
import type { GuestConfigOf } from '../src/model/guest-config.ts';
import { isVmId, type VmId } from '../src/model/ids.ts';

export type Seeds = {
  /** The image for a VM that starts now; null when it has all that is in it. Throws GuestConfigError when its configuration is in trouble. */
  readonly seedFor: (vm: VmId, uid: number | null) => Promise<string | null>;
  /** The VM was admitted: what it was seeded with is soon not needed any more. */
  readonly finish: (vm: VmId) => Promise<void>;
  /** The VM is gone. */
  readonly forget: (vm: VmId) => Promise<void>;
  readonly close: () => void;
};

export type SeedsOptions = {
  /** In the data folder; QEMUs of other users can go through it. */
  readonly folder: string;
  readonly guestConfigOf: GuestConfigOf;
  readonly clock: Pick<Clock, 'after'>;
  readonly log: Log;
};

const NoteSchema = Type.Object(
  { format: Type.Literal('pratique.seed/1'), instanceId: Type.String(), isDone: Type.Boolean() },
  { additionalProperties: false },
);
const parseNote = makeParser(NoteSchema, 'host-fault/seed');

/** Opens the folder; what an earlier daemon was still to wipe is wiped. */
export async function openSeeds({ folder, guestConfigOf, clock, log }: SeedsOptions): Promise<Seeds> {
  await mkdir(folder, { recursive: true, mode: 0o711 });
  const imageOf = (vm: VmId) => join(folder, `${vm}.iso`);
  const noteOf = (vm: VmId) => join(folder, `${vm}.json`);
  const timers = new Map<VmId, () => void>();
  const save = async (vm: VmId, note: Omit<Static<typeof NoteSchema>, 'format'>) =>
    await writeDurably(noteOf(vm), `${JSON.stringify({ format: 'pratique.seed/1', ...note })}\n`);
  const wipeNow = async (vm: VmId) => {
    timers.get(vm)?.();
    timers.delete(vm);
    await wipe(imageOf(vm));
  };
  const wipeLater = (vm: VmId) => {
    const wiping = () => {
      wipeNow(vm).catch((error: unknown) => log.error({ vm, detail: describeError(error) }, 'a seed was not wiped'));
    };
    timers.get(vm)?.();
    timers.set(vm, clock.after(SEED_READ_MS, wiping));
  };
  for (const name of await readdir(folder)) {
    // Half of one, by a daemon that died: its QEMU was never started.
    if (name.endsWith('.new')) await rm(join(folder, name), { force: true });
    const vm = name.slice(0, -'.iso'.length);
    if (!name.endsWith('.iso') || !isVmId(vm)) continue;
    const known = await readNote(noteOf(vm));
    if (known === null) await wipe(imageOf(vm));
    else if (known.isDone) wipeLater(vm);
  }
  return {
    seedFor: async (vm, uid) => {
      // The VM is off: whatever becomes of its configuration, nobody reads the one of before any more.
      await wipeNow(vm);
      const found = await guestConfigOf(vm);
      if (found !== null && found.trouble.length > 0) {
        throw new GuestConfigError('usage/guest-config', `${vm} gets no seed: ${found.trouble.join('; ')}`, {
          next: `mend that, then start it again: pratique config show ${vm}`,
        });
      }
      const items = (found?.items ?? []).map(({ origin: _origin, hasSecret: _hasSecret, ...item }) => item);
      const files = renderNoCloud({ vm, items });
      if (files === null) return null;
      const id = instanceId(vm, items);
      const known = await readNote(noteOf(vm));
      if (known?.isDone === true && known.instanceId === id) return null;
      const owner = uid === null ? {} : { owner: { uid, gid: uid } };
      await writeSeed({ files, path: imageOf(vm), ...owner });
      await save(vm, { instanceId: id, isDone: false });
      return imageOf(vm);
    },
    finish: async (vm) => {
      const known = await readNote(noteOf(vm));
      if (known === null || known.isDone) return;
      await save(vm, { ...known, isDone: true });
      wipeLater(vm);
    },
    forget: async (vm) => {
      await wipeNow(vm);
      await rm(noteOf(vm), { force: true });
    },
    close: () => {
      for (const cancel of timers.values()) cancel();
      timers.clear();
    },
  };
}

async function readNote(path: string): Promise<Static<typeof NoteSchema> | null> {
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
    throw cause;
  });
  return text === null ? null : parseNote(parseJson(text, path, 'host-fault/seed'), path);
}

/** A QEMU that runs has the file open: from now on its guest reads nothing but zeros there. */
async function wipe(path: string): Promise<void> {
  const found = await stat(path).catch(() => null);
  if (found === null) return;
  const handle = await open(path, 'r+');
  try {
    await handle.write(Buffer.alloc(found.size), 0, found.size, 0);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rm(path, { force: true });
}
