// The standing fence: one nft table that drops both directions of every tap that is not admitted. It exists before any tap
// and stays when we are gone. All changes go through one nft process, and each is read back before it counts as done.
import type { Clock } from '../base/clock.ts';
import { makeGathering } from '../base/gather.ts';
import type { Log } from '../base/log.ts';
import { HypervisorError } from './errors.ts';
import {
  addCommands,
  ensureCommand,
  FENCE_TABLE,
  type FenceListing,
  REFRESH_COMMAND,
  readListing,
  removeCommands,
  replaceCommand,
  TAP_PREFIX,
} from './fence-rules.ts';
import { namespaceKey } from './namespace.ts';
import { openNftSession } from './nft-session.ts';
import type { Namespace } from './vm-spec.ts';

export type FenceState = {
  /** What is wrong with the rules in the kernel; null when they are exactly ours. */
  readonly fault: string | null;
  readonly admitted: ReadonlySet<string>;
  readonly gated: ReadonlySet<string>;
};

/** Frames dropped since the table was made. */
export type FenceCounters = { readonly fromGuest: number; readonly toGuest: number };

/** Every method throws HypervisorError `host-fault/fence…` when the kernel's table does not show what was asked for. */
export type Fence = {
  /** Makes the table, or makes it right; admitted taps stay admitted, and there is no unfenced moment when it was there. */
  readonly ensure: () => Promise<void>;
  /** Fences taps whose names do not start with our prefix (attached VMs). */
  readonly guard: (taps: readonly string[]) => Promise<void>;
  /** Forgets such taps: they are no longer ours to fence. */
  readonly unguard: (taps: readonly string[]) => Promise<void>;
  /** Lets frames of these taps pass. Called by gate/ only. */
  readonly admit: (taps: readonly string[]) => Promise<void>;
  readonly expel: (taps: readonly string[]) => Promise<void>;
  readonly isAdmitted: (tap: string) => Promise<boolean>;
  /** Reads the kernel's table again. */
  readonly verify: () => Promise<FenceState>;
  /** Sums over the taps, read from the kernel. */
  readonly counters: (taps: readonly string[]) => Promise<FenceCounters>;
  /** Ends our nft process; the table stands. */
  readonly close: () => void;
};

/** Whether the standing rules cover a tap of this name without guarding it. */
export function isCoveredName(tap: string): boolean {
  return tap.startsWith(TAP_PREFIX);
}

/** Opens the fence of a namespace. Nothing is changed before `ensure`. */
export async function openFence(options: {
  readonly namespace: Namespace;
  readonly log: Log;
  readonly clock: Clock;
}): Promise<Fence> {
  const session = openNftSession(options);
  const where = namespaceKey(options.namespace);
  const ask = makeBatcher(session.request, where);

  const change = async (set: 'admitted' | 'gated', isIn: boolean, taps: readonly string[]): Promise<void> => {
    if (taps.length === 0) return;
    taps.forEach(checkName);
    const listing = await ask({ kind: 'change', set, isIn, taps });
    const wrong = taps.filter((tap) => listing[set].has(tap) !== isIn);
    if (wrong.length === 0) return;
    throw new HypervisorError(
      'host-fault/fence',
      `the fence in ${where} ${isIn ? 'did not take' : 'still has'} ${wrong.join(', ')} in its set ${set}`,
      { next: 'look at `nft list table bridge pratique`' },
    );
  };
  const read = () => ask({ kind: 'read' });

  return {
    ensure: async () => {
      if ((await read()).fault === null) return;
      const mended = await ask({ kind: 'ensure' });
      if (mended.fault === null) return;
      options.log.warn({ fault: mended.fault, namespace: where }, 'the fence could not be mended; replacing it');
      const second = await ask({ kind: 'replace', admitted: [...mended.admitted], gated: [...mended.gated] });
      if (second.fault === null) return;
      throw new HypervisorError('host-fault/fence', `the fence in ${where} cannot be made: ${second.fault}`, {
        next: 'check that the kernel has nf_tables with bridge support',
      });
    },
    guard: (taps) => change('gated', true, taps),
    unguard: (taps) => change('gated', false, taps),
    admit: (taps) => change('admitted', true, taps),
    expel: (taps) => change('admitted', false, taps),
    isAdmitted: async (tap) => (await read()).admitted.has(tap),
    verify: async () => {
      const { fault, admitted, gated } = await read();
      return { fault, admitted, gated };
    },
    counters: async (taps) => {
      const listing = await read();
      const sum = (counts: ReadonlyMap<string, number>) =>
        taps.reduce((total, tap) => total + (counts.get(tap) ?? 0), 0);
      return { fromGuest: sum(listing.droppedFromGuest), toGuest: sum(listing.droppedToGuest) };
    },
    close: session.close,
  };
}

function checkName(tap: string): void {
  if (/^[a-zA-Z0-9_.-]{1,15}$/.test(tap)) return;
  throw new HypervisorError('usage/tap-name', `"${tap.slice(0, 40)}" cannot be the name of a tap`);
}

type Question =
  | { readonly kind: 'read' }
  | { readonly kind: 'ensure' }
  | { readonly kind: 'replace'; readonly admitted: readonly string[]; readonly gated: readonly string[] }
  | {
      readonly kind: 'change';
      readonly set: 'admitted' | 'gated';
      readonly isIn: boolean;
      readonly taps: readonly string[];
    };

type Asked = {
  readonly question: Question;
  readonly resolve: (listing: FenceListing) => void;
  readonly reject: (error: unknown) => void;
};

/** Puts questions that come together, or while nft is busy, into one request: a hundred opens cost one transaction. */
function makeBatcher(
  request: (commands: readonly string[], listing: string) => Promise<{ listing: unknown; complaint: string }>,
  where: string,
): (question: Question) => Promise<FenceListing> {
  let waiting: Asked[] = [];
  let isBusy = false;

  const answer = async (batch: readonly Asked[]): Promise<void> => {
    const questions = batch.map((asked) => asked.question);
    // Admitting and expelling need one set read back; everything else needs the whole table, fresh from the kernel.
    const isSmall = questions.every((question) => question.kind === 'change' && question.set === 'admitted');
    const commands = [...commandsOf(questions), ...(isSmall ? [] : [REFRESH_COMMAND])];
    const listing = isSmall ? `list set ${FENCE_TABLE} admitted` : `list table ${FENCE_TABLE}`;
    try {
      const { listing: document, complaint } = await request(commands, listing);
      const state = document === null ? nothingListed(complaint, where) : readListing(document);
      for (const asked of batch) asked.resolve(state);
    } catch (error) {
      for (const asked of batch) asked.reject(error);
    }
  };
  const work = async (): Promise<void> => {
    while (waiting.length > 0) {
      const batch = waiting;
      waiting = [];
      await answer(batch);
    }
    isBusy = false;
  };
  const begin = makeGathering(() => {
    if (isBusy) return;
    isBusy = true;
    void work();
  });
  return (question) =>
    new Promise((resolve, reject) => {
      waiting.push({ question, resolve, reject });
      if (!isBusy) begin();
    });
}

/** The commands of a batch, in order; of several changes of one tap in one set only the last counts. */
function commandsOf(questions: readonly Question[]): readonly string[] {
  const commands: string[] = [];
  const last = { admitted: new Map<string, boolean>(), gated: new Map<string, boolean>() };
  for (const question of questions) {
    if (question.kind === 'ensure') commands.push(ensureCommand());
    if (question.kind === 'replace') commands.push(replaceCommand(question.admitted, question.gated));
    if (question.kind === 'change') for (const tap of question.taps) last[question.set].set(tap, question.isIn);
  }
  // Expelling before admitting, guarding before both: whatever fails in between leaves less open.
  const pick = (set: 'admitted' | 'gated', isIn: boolean) =>
    [...last[set]].filter(([, wanted]) => wanted === isIn).map(([tap]) => tap);
  commands.push(...addCommands('gated', pick('gated', true)));
  commands.push(...removeCommands('admitted', pick('admitted', false)));
  commands.push(...addCommands('admitted', pick('admitted', true)));
  commands.push(...removeCommands('gated', pick('gated', false)));
  return commands;
}

/** No table at all: a fence with everything missing, unless nft itself is the trouble. */
function nothingListed(complaint: string, where: string): FenceListing {
  if (/No such file or directory/.test(complaint)) return readListing({ nftables: [] });
  throw new HypervisorError('host-fault/fence', `nft in ${where} refused: ${complaint.trim().slice(0, 400)}`, {
    next: 'check that we are root in that namespace and that the kernel has nf_tables',
  });
}
