// What we last did to each VM's cable, on disk: QEMU cannot be asked whether a link is up.
import { Type } from 'typebox';
import { makeParser } from '../base/parse.ts';
import { type DatabaseSync, inTransaction, type Migration } from '../base/sqlite.ts';
import type { RunId, VmId } from '../model/ids.ts';

/** Tables of this room in the host's database. */
export const GATE_MIGRATIONS: readonly Migration[] = [
  (db) =>
    db.exec(`CREATE TABLE gate (
      vm TEXT PRIMARY KEY, state TEXT NOT NULL CHECK (state IN ('open', 'closed')),
      run TEXT, reason TEXT NOT NULL, at_ms INTEGER NOT NULL
    ) STRICT`),
];

export type LinkState = {
  readonly vm: VmId;
  readonly state: 'open' | 'closed';
  /** The run whose evidence (or override) opened it; null when closed, or opened outside a run. */
  readonly run: RunId | null;
  readonly reason: string;
  readonly atMs: number;
};

export type LinkMemory = {
  /** Resolves when it is on disk; many at once share one transaction. */
  readonly remember: (state: LinkState) => Promise<void>;
  /** What was last remembered; a VM never heard of is closed. */
  readonly recall: (vm: VmId) => LinkState;
};

const parseRow = makeParser(
  Type.Object({
    state: Type.Union([Type.Literal('open'), Type.Literal('closed')]),
    run: Type.Union([Type.Unsafe<RunId>(Type.String()), Type.Null()]),
    reason: Type.String(),
    at_ms: Type.Number(),
  }),
  'host-fault/database',
);

type Waiting = {
  readonly state: LinkState;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
};

/** The memory in a database that has GATE_MIGRATIONS. */
export function openLinkMemory(db: DatabaseSync): LinkMemory {
  const write = db.prepare('INSERT OR REPLACE INTO gate (vm, state, run, reason, at_ms) VALUES (?, ?, ?, ?, ?)');
  const read = db.prepare('SELECT state, run, reason, at_ms FROM gate WHERE vm = ?');
  let waiting: Waiting[] = [];

  const flush = () => {
    const batch = waiting;
    waiting = [];
    try {
      inTransaction(db, () => {
        for (const { state } of batch)
          write.run(state.vm, state.state, state.run, state.reason, Math.round(state.atMs));
      });
      for (const { resolve } of batch) resolve();
    } catch (error) {
      for (const { reject } of batch) reject(error);
    }
  };
  return {
    remember: (state) =>
      new Promise((resolve, reject) => {
        if (waiting.length === 0) setImmediate(flush);
        waiting.push({ state, resolve, reject });
      }),
    recall: (vm) => {
      const row = read.get(vm);
      if (row === undefined) return { vm, state: 'closed', run: null, reason: 'never opened', atMs: 0 };
      const { state, run, reason, at_ms } = parseRow(row, `the gate's row of ${vm}`);
      return { vm, state, run, reason, atMs: at_ms };
    },
  };
}
