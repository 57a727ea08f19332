// The host's idea of how late it is at least: what vendors' signatures and ages are held against, whatever the wall clock says.
//
// It goes on with the machine's own uptime, over restarts of the daemon too, and is taken up to the wall clock whenever that is later.
// A wall clock that is set back gains nothing. One that is suddenly far ahead counts as long as it stands there, but leaves a mark only
// when it has stood there for a while: an error that is corrected soon must not make every signature look expired for years.
import { readFile } from 'node:fs/promises';
import { type Static, Type } from 'typebox';
import type { Clock } from './clock.ts';
import { writeDurably } from './durable-file.ts';
import { describeError } from './errors.ts';
import { TRUST_JUMP_MAX_MS, TRUST_SETTLE_MS } from './limits.ts';
import type { Log } from './log.ts';
import { makeParser, parseJson } from './parse.ts';
import { hostBootId } from './process-id.ts';

export type TrustTime = {
  /** Milliseconds since the epoch; for `Clock.trustedMs`. */
  readonly nowMs: () => number;
  /** By how much the wall clock is behind; 0 when it is not. */
  readonly behindMs: () => number;
  /** By how much the wall clock is ahead of what is believed for good; 0 when that is settled. */
  readonly unsettledMs: () => number;
  /** Makes what is believed durable. Rejects with the file system's error. */
  readonly save: () => Promise<void>;
  /** An operator's word that the wall clock is right: what is believed goes back to it. Durable when it resolves. */
  readonly accept: () => Promise<void>;
};

export type TrustTimeOptions = {
  readonly path: string;
  readonly clock: Clock;
  readonly log: Log;
  /** Tells one boot of the machine from another; uptimes compare within one only. */
  readonly bootId?: () => Promise<string>;
};

const KeptSchema = Type.Object({
  format: Type.Literal('pratique.trust-time/1'),
  trustedMs: Type.Number(),
  boot: Type.String(),
  uptimeMs: Type.Number(),
});
type Kept = Static<typeof KeptSchema>;

const parseKept = makeParser(KeptSchema, 'host-fault/trust-time');

/** What was sure at a point of the machine's uptime. */
type Mark = { readonly trustedMs: number; readonly uptimeMs: number };

/** Opens it from its file; without one it begins with the wall clock. A damaged file is told, and begins anew. */
export async function openTrustTime(options: TrustTimeOptions): Promise<TrustTime> {
  const { path, clock } = options;
  const boot = await (options.bootId ?? hostBootId)();
  const uptimeMs = clock.uptimeMs ?? clock.monotonicMs;
  let mark: Mark = markOf(await readKept(options), boot, { trustedMs: clock.nowMs(), uptimeMs: uptimeMs() });
  let ahead: { readonly wallMs: number; readonly uptimeMs: number } | null = null;

  // Whole milliseconds, as a wall clock has them: databases and the API take no others.
  const floorMs = (): number => Math.trunc(mark.trustedMs + Math.max(0, uptimeMs() - mark.uptimeMs));
  const raise = (trustedMs: number): number => {
    mark = { trustedMs, uptimeMs: uptimeMs() };
    ahead = null;
    return trustedMs;
  };
  const nowMs = (): number => {
    const wallMs = clock.nowMs();
    const sureMs = floorMs();
    if (wallMs <= sureMs) {
      ahead = null;
      return sureMs;
    }
    if (wallMs - sureMs <= TRUST_JUMP_MAX_MS) return raise(wallMs);
    const up = uptimeMs();
    const isInStep = ahead !== null && Math.abs(wallMs - ahead.wallMs - (up - ahead.uptimeMs)) <= TRUST_JUMP_MAX_MS;
    if (ahead === null || !isInStep) ahead = { wallMs, uptimeMs: up };
    return up - ahead.uptimeMs >= TRUST_SETTLE_MS ? raise(wallMs) : wallMs;
  };
  const save = async (): Promise<void> => {
    nowMs();
    const kept: Kept = { format: 'pratique.trust-time/1', trustedMs: floorMs(), boot, uptimeMs: uptimeMs() };
    await writeDurably(path, `${JSON.stringify(kept)}\n`);
  };
  return {
    nowMs,
    behindMs: () => Math.max(0, nowMs() - clock.nowMs()),
    unsettledMs: () => Math.max(0, nowMs() - floorMs()),
    save,
    accept: async () => {
      raise(clock.nowMs());
      await save();
    },
  };
}

/** Within one boot the time that no daemon ran counts too; over a reboot it is not known how long the machine was off. */
function markOf(kept: Kept | null, boot: string, now: Mark): Mark {
  if (kept === null) return now;
  const sinceMs = kept.boot === boot ? Math.max(0, now.uptimeMs - kept.uptimeMs) : 0;
  return { trustedMs: kept.trustedMs + sinceMs, uptimeMs: now.uptimeMs };
}

async function readKept({ path, log }: TrustTimeOptions): Promise<Kept | null> {
  try {
    return parseKept(parseJson(await readFile(path, 'utf8'), path, 'host-fault/trust-time'), path);
  } catch (error) {
    const isMissing = error instanceof Error && 'code' in error && error.code === 'ENOENT';
    if (!isMissing) log.error({ detail: describeError(error) }, 'how late it is at least is not known any more');
    return null;
  }
}
