// The soak's judge of openings. Pure: from what was seen at the kernel, at the QEMUs, at the agents and at a peer on the bridge, and
// from the signed audit chain, it says which openings were wrong. It knows nothing of the daemon but its records.
import type { SaidConfirm } from '../fakes/fleet-life.ts';

/** A tap went into the kernel's set of admitted ones, or left it. */
export type Admission = {
  /** Wall time at which it was read; up to OBSERVED_LATE_MS after it was so. */
  readonly atMs: number;
  readonly tap: string;
  readonly isAdmitted: boolean;
  /** The process that changed the set. */
  readonly byPid: number;
};

/** What the judge needs of an audit record. */
export type Recorded = {
  readonly seq: number;
  readonly atMs: number;
  readonly record: { readonly kind: string; readonly vm?: string } & Readonly<Record<string, unknown>>;
};

export type Seen = {
  /** Which VM a tap belongs to. */
  readonly vmOfTap: ReadonlyMap<string, string>;
  /** In the order in which the kernel told them. */
  readonly admissions: readonly Admission[];
  /** `set_link up` at QEMUs that are watched. */
  readonly raises: readonly { readonly atMs: number; readonly vm: string }[];
  /** Confirmations of agents that are watched. */
  readonly confirms: readonly SaidConfirm[];
  /** VMs whose agents are watched: their openings by evidence must be one of `confirms`. */
  readonly watched: ReadonlySet<string>;
  /** Overrides that an operator asked for. */
  readonly overrides: readonly { readonly atMs: number; readonly vm: string; readonly reason: string }[];
  /** Frames that arrived at a peer on the bridge, with the kernel's time. */
  readonly frames: readonly { readonly atMs: number; readonly vm: string }[];
  /** Every record of the chain, in its order. */
  readonly records: readonly Recorded[];
};

export type WrongOpening = { readonly vm: string; readonly atMs: number; readonly text: string };

export type OpeningCounts = {
  readonly admitted: number;
  readonly raised: number;
  readonly byEvidence: number;
  readonly byOverride: number;
  readonly frames: number;
};

/** How long after the fact we may have read what the kernel told. */
const OBSERVED_LATE_MS = 2_000;
/** Two clocks that count whole milliseconds. */
const ROUNDING_MS = 2;

/** A time in which one opening record entitles to be open: from the record to the next closing's. */
type Grant = { readonly fromMs: number; readonly untilMs: number; readonly seq: number };

/** Finds every wrong opening. */
export function judgeOpenings(seen: Seen): { readonly wrong: readonly WrongOpening[]; readonly counts: OpeningCounts } {
  const grants = grantsOf(seen.records);
  const wrong = [
    ...judgeAdmissions(seen, grants),
    ...judgeEach(seen.raises, grants, 'its link was raised'),
    ...judgeFrames(seen.frames, grants),
    ...judgeRecords(seen),
  ].sort((a, b) => a.atMs - b.atMs);
  const ofKind = (kind: string) => seen.records.filter(({ record }) => record.kind === kind).length;
  return {
    wrong,
    counts: {
      admitted: seen.admissions.filter(({ isAdmitted }) => isAdmitted).length,
      raised: seen.raises.length,
      byEvidence: ofKind('gate-opened'),
      byOverride: ofKind('override'),
      frames: seen.frames.length,
    },
  };
}

function grantsOf(records: readonly Recorded[]): ReadonlyMap<string, readonly Grant[]> {
  const grants = new Map<string, Grant[]>();
  for (const { seq, atMs, record } of records) {
    if (record.vm === undefined) continue;
    const ofVm = grants.get(record.vm) ?? [];
    grants.set(record.vm, ofVm);
    if (record.kind === 'gate-opened' || record.kind === 'override')
      ofVm.push({ fromMs: atMs, untilMs: Number.POSITIVE_INFINITY, seq });
    if (record.kind === 'gate-closed')
      for (const [index, grant] of ofVm.entries())
        if (grant.untilMs === Number.POSITIVE_INFINITY) ofVm[index] = { ...grant, untilMs: atMs };
  }
  return grants;
}

function judgeAdmissions(seen: Seen, grants: ReadonlyMap<string, readonly Grant[]>): readonly WrongOpening[] {
  const admitted = seen.admissions.filter(({ isAdmitted }) => isAdmitted);
  const strangers = admitted
    .filter(({ tap }) => !seen.vmOfTap.has(tap))
    .map(({ atMs, tap }) => ({ vm: '', atMs, text: `the tap ${tap}, which is no VM's, was admitted` }));
  const known = admitted.flatMap(({ atMs, tap }) => {
    const vm = seen.vmOfTap.get(tap);
    return vm === undefined ? [] : [{ atMs, vm, tap }];
  });
  const perTap = [...Map.groupBy(known, ({ tap }) => tap).values()];
  return [...strangers, ...perTap.flatMap((each) => judgeEach(each, grants, 'its tap was admitted'))];
}

/**
 * Each of these needs an opening record of its own that was there before it and was not closed since. Matched as a schedule of points
 * to intervals: the earliest point takes the fitting record that ends first, which finds a matching whenever there is one.
 */
function judgeEach(
  events: readonly { readonly atMs: number; readonly vm: string }[],
  grants: ReadonlyMap<string, readonly Grant[]>,
  what: string,
): readonly WrongOpening[] {
  const used = new Set<number>();
  const wrong: WrongOpening[] = [];
  for (const { atMs, vm } of events.toSorted((a, b) => a.atMs - b.atMs)) {
    const fitting = (grants.get(vm) ?? [])
      .filter((each) => !used.has(each.seq))
      .filter(({ fromMs, untilMs }) => fromMs <= atMs + ROUNDING_MS && atMs <= untilMs + OBSERVED_LATE_MS)
      .sort((a, b) => a.untilMs - b.untilMs || a.seq - b.seq);
    const [first] = fitting;
    if (first === undefined) wrong.push({ vm, atMs, text: `${what} without a record of its own that entitles to it` });
    else used.add(first.seq);
  }
  return wrong;
}

/** A frame needs only to lie in the time of some record; its own time is the kernel's, so nothing is late. The first of a VM is told. */
function judgeFrames(frames: Seen['frames'], grants: ReadonlyMap<string, readonly Grant[]>): readonly WrongOpening[] {
  const isStray = ({ atMs, vm }: Seen['frames'][number]): boolean =>
    !(grants.get(vm) ?? []).some(
      ({ fromMs, untilMs }) => fromMs <= atMs + ROUNDING_MS && atMs <= untilMs + ROUNDING_MS,
    );
  return [...Map.groupBy(frames.filter(isStray), ({ vm }) => vm)].map(([vm, [first, ...more]]) => ({
    vm,
    atMs: first?.atMs ?? Number.NaN,
    text: `${more.length + 1} of its frames reached the peer while nothing had opened its gate`,
  }));
}

/** What a record rests on must have happened: a true confirmation of this session, or an operator's word. */
function judgeRecords(seen: Seen): readonly WrongOpening[] {
  const wrong: WrongOpening[] = [];
  for (const { seq, atMs, record } of seen.records) {
    const vm = record.vm ?? '';
    const tell = (text: string) => wrong.push({ vm, atMs, text: `record ${seq}: ${text}` });
    if (record.kind === 'override') {
      const isAsked = seen.overrides.some(
        (asked) => asked.vm === vm && asked.reason === record.reason && asked.atMs <= atMs + ROUNDING_MS,
      );
      if (!isAsked) tell(`an override that nobody asked for: ${String(record.reason)}`);
    }
    if (record.kind === 'gate-opened') {
      const trouble = evidenceTrouble(seen, vm, atMs, record.evidence);
      if (trouble !== null) tell(trouble);
    }
  }
  return wrong;
}

function evidenceTrouble(seen: Seen, vm: string, atMs: number, evidence: unknown): string | null {
  if (typeof evidence !== 'object' || evidence === null) return 'opened without evidence';
  // The cast holds for any object; each field is only compared.
  const { vm: whose, run, nonce, boot, inventoryDigest } = evidence as Readonly<Record<string, unknown>>;
  if (whose !== vm) return `opened with the evidence of ${String(whose)}`;
  if (!seen.watched.has(vm)) return null;
  const said = seen.confirms.filter(
    (each) =>
      each.vm === vm &&
      each.run === run &&
      each.nonce === nonce &&
      each.boot === boot &&
      each.atMs <= atMs + ROUNDING_MS,
  );
  if (said.length === 0) return 'opened, but its agent confirmed nothing in this session of this run';
  const truths = said.filter(({ isTruthful }) => isTruthful);
  if (truths.length === 0) return 'opened by the confirmation of an agent that lied';
  const isSame = truths.some((each) => each.inventoryDigest === inventoryDigest);
  return isSame ? null : 'opened with another inventory than its agent confirmed';
}
