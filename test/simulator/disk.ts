// The host's disk under the daemon's databases: SQLite's own files in memory, of which a power cut loses what was not synced.
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Random } from './random.ts';

/** The daemon's databases, below its data folder. */
export const JOURNAL_DB = 'pratique.db';
const AUDIT_DB = 'audit/audit.db';
export type DatabaseName = typeof JOURNAL_DB | typeof AUDIT_DB;
const DATABASES: readonly DatabaseName[] = [JOURNAL_DB, AUDIT_DB];

/** Where a database stood when the write that is not synced yet began. */
type Mark = { walBytes: number; main: string; writes: number };

export type HostDisk = {
  /** The data folder of the present daemon. */
  readonly folder: () => string;
  readonly audit: typeof AUDIT_DB;
  /** Until the returned function is called, a power cut may lose what is written to this database from now on. */
  readonly beginWrite: (name: DatabaseName) => () => void;
  /**
   * The disk as the next daemon finds it, in a folder of its own: after `kill` with all that was written (the kernel has it), after
   * `power-cut` without what was not synced, or with a torn part of it.
   */
  readonly crash: (kind: 'kill' | 'power-cut', random: Random) => void;
  readonly remove: () => void;
};

/** A new disk, in memory where the machine has a file system for that: nothing here has to survive. */
export function makeHostDisk(): HostDisk {
  const root = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'pratique-sim-'));
  const marks = new Map<DatabaseName, Mark>();
  let generation = 0;
  const folder = (): string => join(root, String(generation));
  mkdirSync(folder());

  const walOf = (name: DatabaseName): string => join(folder(), `${name}-wal`);
  const mainOf = (name: DatabaseName): string => {
    const found = statSync(join(folder(), name), { throwIfNoEntry: false });
    return found === undefined ? '' : `${found.size} ${found.mtimeMs}`;
  };
  const sizeOf = (path: string): number => statSync(path, { throwIfNoEntry: false })?.size ?? 0;

  return {
    folder,
    audit: AUDIT_DB,
    beginWrite: (name) => {
      const mark = marks.get(name) ?? { walBytes: sizeOf(walOf(name)), main: mainOf(name), writes: 0 };
      mark.writes += 1;
      marks.set(name, mark);
      const from = generation;
      return () => {
        if (from !== generation) return;
        mark.writes -= 1;
        // A sync takes everything with it that was written until then.
        Object.assign(mark, { walBytes: sizeOf(walOf(name)), main: mainOf(name) });
        if (mark.writes === 0) marks.delete(name);
      };
    },
    crash: (kind, random) => {
      const before = folder();
      // A checkpoint since then has synced everything, and begun the log anew.
      const kept = DATABASES.map((name) => {
        const mark = marks.get(name);
        const wal = walOf(name);
        if (!existsSync(wal)) return null;
        const bytes = readFileSync(wal);
        const isLossy = kind === 'power-cut' && mark !== undefined && mark.main === mainOf(name);
        const end =
          isLossy && mark.walBytes < bytes.length ? random.between(mark.walBytes, bytes.length) : bytes.length;
        return { name, bytes: bytes.subarray(0, end) };
      });
      generation += 1;
      marks.clear();
      cpSync(before, folder(), { recursive: true, filter: (path) => !path.endsWith('-wal') && !path.endsWith('-shm') });
      for (const wal of kept) if (wal !== null) writeFileSync(walOf(wal.name), wal.bytes);
    },
    remove: () => rmSync(root, { recursive: true, force: true }),
  };
}
