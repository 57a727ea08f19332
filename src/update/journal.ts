// The durable memory of all runs: VMs, their states, plans and events. States are saved before their effects run.

import { makeGathering } from '../base/gather.ts';
import { EVENTS_KEPT_PER_VM } from '../base/limits.ts';
import { type DatabaseSync, inTransaction, type Migration } from '../base/sqlite.ts';
import type { VmSpec } from '../hypervisor/vm-spec.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { Plan } from '../model/plan.ts';
import type { Policy } from '../model/policy.ts';
import type { FailedVersion } from '../model/quarantine.ts';
import type { Journaled, RunStateKind } from './state.ts';

export const JOURNAL_MIGRATIONS: readonly Migration[] = [
  (db) =>
    db.exec(`
      CREATE TABLE vm (name TEXT PRIMARY KEY, uid INTEGER NOT NULL UNIQUE, spec TEXT NOT NULL, spec_digest TEXT NOT NULL, policy TEXT NOT NULL) STRICT;
      CREATE TABLE run_state (vm TEXT PRIMARY KEY REFERENCES vm(name) ON DELETE CASCADE, step INTEGER NOT NULL, since_ms INTEGER NOT NULL, state TEXT NOT NULL) STRICT;
      CREATE TABLE plan (run TEXT PRIMARY KEY, vm TEXT NOT NULL REFERENCES vm(name) ON DELETE CASCADE, plan TEXT NOT NULL) STRICT;
      CREATE INDEX plan_vm ON plan(vm);
      CREATE TABLE event (seq INTEGER PRIMARY KEY AUTOINCREMENT, vm TEXT NOT NULL, at_ms INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
      CREATE INDEX event_vm ON event(vm, seq);
    `),
];

/** Came later: after every other table's, so that the numbers of the earlier steps stay. */
export const FAILED_UPDATE_MIGRATIONS: readonly Migration[] = [
  (db) =>
    db.exec(
      'CREATE TABLE failed_update (vm TEXT NOT NULL REFERENCES vm(name) ON DELETE CASCADE, item TEXT NOT NULL, version TEXT NOT NULL, at_ms INTEGER NOT NULL, cause TEXT NOT NULL, PRIMARY KEY (vm, item, version)) STRICT',
    ),
];

/** The first version stored the whole policy of a VM: that is now what the VM has of its own. */
export const OWN_POLICY_MIGRATIONS: readonly Migration[] = [
  (db) => db.exec("UPDATE vm SET policy = json_object('group', NULL, 'own', json(policy))"),
];

/**
 * States and plans are JSON, and 0.1.0 wrote them without what came with overlays and left-out versions: such a run goes on without
 * its plan and asks for a new one.
 */
export const RUN_SHAPE_MIGRATIONS: readonly Migration[] = [
  (db) =>
    db.exec(`
      UPDATE run_state SET state = json_set(state, '$.run.isOnTrial', json('false'), '$.run.plan', NULL,
        '$.run.isInstalled', json('false'), '$.run.manifests', json('[]'),
        '$.run.sessions', coalesce(json_extract(state, '$.run.sessions'), 0))
        WHERE json_type(state, '$.run') = 'object' AND json_type(state, '$.run.isOnTrial') IS NULL;
      UPDATE run_state SET state = json_set(state, '$.phase', iif(json_extract(state, '$.isDriveAttached'), 'offered', 'attaching'))
        WHERE json_extract(state, '$.kind') = 'offering' AND json_type(state, '$.phase') IS NULL;
      DELETE FROM plan WHERE json_type(plan, '$.leftOut') IS NULL;
    `),
];

/** A VM as the journal keeps it. */
export type StoredVm = {
  readonly vm: VmId;
  readonly uid: number;
  readonly spec: VmSpec;
  readonly specDigest: string;
  /** What was decided for this VM alone; the rest of its policy comes from its group and the host's configuration. */
  readonly own: Partial<Policy>;
  /** The group it was put into by name; null: none but one that its name matches. */
  readonly group: string | null;
  readonly journaled: Journaled;
  readonly sinceMs: number;
};

/** A VM with the policy that holds for it now. */
export type RunRecord = Omit<StoredVm, 'own' | 'group'> & { readonly policy: Policy };

/** One thing worth telling about a VM, in a printable sentence. */
export type RunNote = {
  readonly vm: VmId;
  readonly atMs: number;
  readonly kind: 'state' | 'progress' | 'gate' | 'guest' | 'operator' | 'warning';
  readonly state: RunStateKind;
  readonly text: string;
  readonly progress?: { readonly item: string; readonly phase: string; readonly done: number; readonly total: number };
};
/** A version that failed on a VM, when, and how. */
export type FailedUpdate = FailedVersion & { readonly atMs: number; readonly cause: string };
export type SeqNote = RunNote & { readonly seq: number };

export type Journal = {
  readonly load: () => readonly StoredVm[];
  readonly addVm: (record: StoredVm) => void;
  /** On disk when it returns. */
  readonly savePolicy: (vm: VmId, given: Pick<StoredVm, 'own' | 'group'>) => void;
  readonly removeVm: (vm: VmId) => void;
  /** Resolves when the state is on disk. Saves that arrive together share one transaction and one fsync. */
  readonly saveState: (vm: VmId, journaled: Journaled, sinceMs: number) => Promise<void>;
  /** Resolves when the plan is on disk; those of the VM's earlier runs go. */
  readonly savePlan: (plan: Plan) => Promise<void>;
  readonly loadPlan: (run: RunId) => Plan | null;
  /** Goes to disk with the next state, or within a moment. */
  readonly forgetPlansOf: (vm: VmId, except: RunId | null) => void;
  /** Versions that failed on this VM and were rolled back. */
  readonly failedUpdates: (vm: VmId) => readonly FailedUpdate[];
  /** Resolves when they are on disk. */
  readonly rememberFailed: (vm: VmId, failed: readonly FailedUpdate[]) => Promise<void>;
  /** Resolves when that is on disk. */
  readonly forgetFailed: (vm: VmId) => Promise<void>;
  /** Notes are saved with the next state, or within a moment; a power cut may lose the last ones, never a state. */
  readonly note: (note: RunNote) => void;
  readonly notes: (options: {
    readonly vm?: string;
    readonly afterSeq: number;
    readonly limit: number;
  }) => readonly SeqNote[];
  /** Called with each note once it has its number. */
  readonly onNote: (listener: (note: SeqNote) => void) => () => void;
  readonly flush: () => void;
};

type Pending = { readonly write: () => void; readonly settle: (error: unknown) => void };

/** A journal over an open database with all migrations of this file applied. */
export function openJournal(db: DatabaseSync): Journal {
  const statements = prepareStatements(db);
  const listeners = new Set<(note: SeqNote) => void>();
  let pending: Pending[] = [];
  let notes: RunNote[] = [];
  const counts = new Map<VmId, number>();

  const flush = (): void => {
    const batch = pending;
    const newNotes = notes;
    pending = [];
    notes = [];
    if (batch.length === 0 && newNotes.length === 0) return;
    let numbered: SeqNote[] = [];
    try {
      numbered = inTransaction(db, () => {
        for (const entry of batch) entry.write();
        return newNotes.map((note) => insertNote(statements, counts, note));
      });
    } catch (error) {
      for (const entry of batch) entry.settle(error);
      return;
    }
    for (const entry of batch) entry.settle(null);
    for (const note of numbered) for (const listener of listeners) listener(note);
  };
  const schedule = makeGathering(flush);
  const enqueue = (write: () => void): Promise<void> =>
    new Promise((resolve, reject) => {
      pending.push({ write, settle: (error) => (error === null ? resolve() : reject(error)) });
      schedule();
    });

  return {
    flush,
    load: () => statements.load.all().map(readRecord),
    addVm: (record) => {
      inTransaction(db, () => {
        statements.addVm.run(record.vm, record.uid, JSON.stringify(record.spec), record.specDigest, policyText(record));
        statements.saveState.run(
          record.vm,
          record.journaled.step,
          record.sinceMs,
          JSON.stringify(record.journaled.state),
        );
      });
    },
    savePolicy: (vm, given) => void statements.savePolicy.run(policyText(given), vm),
    removeVm: (vm) => {
      inTransaction(db, () => {
        statements.removeNotes.run(vm);
        statements.removeVm.run(vm);
      });
    },
    saveState: (vm, journaled, sinceMs) => {
      const text = JSON.stringify(journaled.state);
      return enqueue(() => statements.saveState.run(vm, journaled.step, sinceMs, text));
    },
    savePlan: (plan) => {
      const text = JSON.stringify(plan);
      return enqueue(() => {
        statements.forgetPlans.run(plan.vm, plan.run);
        statements.savePlan.run(plan.run, plan.vm, text);
      });
    },
    loadPlan: (run) => {
      const row = statements.loadPlan.get(run) as { plan: string } | undefined;
      // The cast holds: only savePlan writes this column.
      return row === undefined ? null : (JSON.parse(row.plan) as Plan);
    },
    forgetPlansOf: (vm, except) => {
      // Nobody waits for it, so it has no fsync of its own; a plan that stays is replaced by the VM's next one.
      pending.push({ write: () => statements.forgetPlans.run(vm, except ?? ''), settle: () => {} });
      schedule();
    },
    failedUpdates: (vm) => statements.failedOf.all(vm).map(readFailed),
    rememberFailed: (vm, failed) =>
      enqueue(() => {
        for (const { item, version, atMs, cause } of failed) statements.addFailed.run(vm, item, version, atMs, cause);
      }),
    forgetFailed: (vm) => enqueue(() => statements.forgetFailed.run(vm)),
    note: (note) => {
      notes.push(note);
      schedule();
    },
    notes: ({ vm, afterSeq, limit }) => {
      const rows =
        vm === undefined ? statements.notes.all(afterSeq, limit) : statements.notesOfVm.all(vm, afterSeq, limit);
      return rows.map(readNote);
    },
    onNote: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

function policyText({ own, group }: Pick<StoredVm, 'own' | 'group'>): string {
  return JSON.stringify({ group, own });
}

type Statements = ReturnType<typeof prepareStatements>;

function prepareStatements(db: DatabaseSync) {
  return {
    load: db.prepare(
      'SELECT name, uid, spec, spec_digest, policy, step, since_ms, state FROM vm JOIN run_state ON vm = name ORDER BY name',
    ),
    addVm: db.prepare('INSERT INTO vm (name, uid, spec, spec_digest, policy) VALUES (?, ?, ?, ?, ?)'),
    savePolicy: db.prepare('UPDATE vm SET policy = ? WHERE name = ?'),
    removeVm: db.prepare('DELETE FROM vm WHERE name = ?'),
    saveState: db.prepare(
      'INSERT INTO run_state (vm, step, since_ms, state) VALUES (?, ?, ?, ?) ON CONFLICT (vm) DO UPDATE SET step = excluded.step, since_ms = excluded.since_ms, state = excluded.state',
    ),
    savePlan: db.prepare('INSERT OR REPLACE INTO plan (run, vm, plan) VALUES (?, ?, ?)'),
    loadPlan: db.prepare('SELECT plan FROM plan WHERE run = ?'),
    forgetPlans: db.prepare('DELETE FROM plan WHERE vm = ? AND run <> ?'),
    failedOf: db.prepare('SELECT item, version, at_ms, cause FROM failed_update WHERE vm = ? ORDER BY at_ms, item'),
    addFailed: db.prepare(
      'INSERT OR REPLACE INTO failed_update (vm, item, version, at_ms, cause) VALUES (?, ?, ?, ?, ?)',
    ),
    forgetFailed: db.prepare('DELETE FROM failed_update WHERE vm = ?'),
    addNote: db.prepare('INSERT INTO event (vm, at_ms, body) VALUES (?, ?, ?)'),
    trimNotes: db.prepare(
      'DELETE FROM event WHERE vm = ?1 AND seq <= (SELECT seq FROM event WHERE vm = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)',
    ),
    removeNotes: db.prepare('DELETE FROM event WHERE vm = ?'),
    notes: db.prepare('SELECT seq, vm, at_ms, body FROM event WHERE seq > ? ORDER BY seq LIMIT ?'),
    notesOfVm: db.prepare('SELECT seq, vm, at_ms, body FROM event WHERE vm = ? AND seq > ? ORDER BY seq LIMIT ?'),
  };
}

/** How many notes of one VM arrive between two trims of the oldest. */
const TRIM_EVERY = 256;

function insertNote(statements: Statements, counts: Map<VmId, number>, note: RunNote): SeqNote {
  const { vm, atMs, ...body } = note;
  const seq = Number(statements.addNote.run(vm, atMs, JSON.stringify(body)).lastInsertRowid);
  // Counted for each VM: a common count would leave out whoever writes between the others' turns.
  const count = (counts.get(vm) ?? 0) + 1;
  counts.set(vm, count % TRIM_EVERY);
  if (count === TRIM_EVERY) statements.trimNotes.run(vm, EVENTS_KEPT_PER_VM);
  return { seq, ...note };
}

// The casts below hold: each row was written by the statement of the same name in this file.
function readRecord(row: Record<string, unknown>): StoredVm {
  const text = row as {
    name: VmId;
    uid: number;
    spec: string;
    spec_digest: string;
    policy: string;
    step: number;
    since_ms: number;
    state: string;
  };
  return {
    vm: text.name,
    uid: text.uid,
    spec: JSON.parse(text.spec) as VmSpec,
    specDigest: text.spec_digest,
    ...(JSON.parse(text.policy) as Pick<StoredVm, 'own' | 'group'>),
    journaled: { step: text.step, state: JSON.parse(text.state) as Journaled['state'] },
    sinceMs: text.since_ms,
  };
}

function readFailed(row: Record<string, unknown>): FailedUpdate {
  const { at_ms: atMs, ...failed } = row as { item: string; version: string; at_ms: number; cause: string };
  return { ...failed, atMs };
}

function readNote(row: Record<string, unknown>): SeqNote {
  const { seq, vm, at_ms: atMs, body } = row as { seq: number; vm: VmId; at_ms: number; body: string };
  return { seq, vm, atMs, ...(JSON.parse(body) as Omit<RunNote, 'vm' | 'atMs'>) };
}
