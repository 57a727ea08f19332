// Reads stored packages again, on request and by itself, one reading at a time, and remembers what the last one found.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { type Clock, isoTime } from '../src/base/clock.ts';
import { writeDurably } from '../src/base/durable-file.ts';
import { describeError, PratiqueError } from '../src/base/errors.ts';
import { SCRUB_ROTTEN_TOLD_MAX, STORE_SCRUB_BYTES_PER_SECOND } from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import { makeParser, parseJson } from '../src/base/parse.ts';
import { counted, printable } from '../src/base/printable.ts';
import { DigestSchema } from '../src/model/digest-schema.ts';
import type { BlobStore } from '../src/store/blob-store.ts';
import type { ScrubOptions, ScrubReport } from '../src/store/scrub.ts';
import type { DoctorLine } from './doctor-line.ts';

const strict = { additionalProperties: false } as const;

export const ScrubResultSchema = Type.Object(
  {
    startedAtMs: Type.Number({ description: 'Wall time' }),
    endedAtMs: Type.Number({ description: 'Wall time' }),
    checkedBlobs: Type.Integer({ minimum: 0 }),
    checkedBytes: Type.Integer({ minimum: 0 }),
    rottenBlobs: Type.Integer({
      minimum: 0,
      description: 'Damaged ones; they were taken out and are fetched again when needed',
    }),
    rotten: Type.Array(
      Type.Object(
        {
          digest: DigestSchema,
          fault: Type.Union([Type.Literal('altered'), Type.Literal('unreadable'), Type.Literal('missing')]),
          owners: Type.Array(Type.String(), { description: 'Who had pinned it, and may have it on a drive' }),
        },
        strict,
      ),
      { description: 'The first of them' },
    ),
  },
  strict,
);
export type ScrubResult = Static<typeof ScrubResultSchema>;

export const ScrubViewSchema = Type.Object(
  { isRunning: Type.Boolean(), last: Type.Union([ScrubResultSchema, Type.Null()]) },
  strict,
);
export type ScrubView = { readonly isRunning: boolean; readonly last: ScrubResult | null };

export type Scrubbing = {
  /** What maintenance calls instead of the store's own: the same reading, and its result is kept. */
  readonly scrub: BlobStore['scrub'];
  /** Begins to read everything, after what is being read; or joins those who asked for it already. */
  readonly start: () => void;
  readonly view: () => ScrubView;
  /** Ends what is under way. What was read counts; the next reading goes on with the rest. */
  readonly close: () => Promise<void>;
};

export type ScrubbingOptions = {
  readonly store: Pick<BlobStore, 'scrub'>;
  /** The store's folder. */
  readonly folder: string;
  readonly clock: Clock;
  readonly log: Log;
};

const parseResult = makeParser(ScrubResultSchema, 'host-fault/scrub');

/** Opens it with the result of the last reading, also of an earlier daemon's. */
export async function openScrubbing(options: ScrubbingOptions): Promise<Scrubbing> {
  const { store, clock, log } = options;
  const path = join(options.folder, 'scrub.json');
  const ending = new AbortController();
  let last = await readLast(path, log);
  let queue: Promise<unknown> = Promise.resolve();
  let waiting = 0;
  let isAsked = false;

  const read = async (given: ScrubOptions): Promise<ScrubReport> => {
    const startedAtMs = clock.nowMs();
    const signal = given.signal === undefined ? ending.signal : AbortSignal.any([ending.signal, given.signal]);
    const report = await store.scrub({ ...given, signal });
    // A look that found nothing old enough to read again is no reading.
    if (report.checkedBlobs === 0 && given.verifiedBeforeMs !== undefined && last !== null) return report;
    last = resultOf(report, startedAtMs, clock.nowMs());
    await writeDurably(path, `${JSON.stringify(last)}\n`);
    return report;
  };
  const scrub = async (given: ScrubOptions = {}): Promise<ScrubReport> => {
    waiting += 1;
    const mine = queue.then(() => read(given));
    queue = mine.catch(() => {});
    return await mine.finally(() => {
      waiting -= 1;
    });
  };
  return {
    scrub,
    start: () => {
      if (isAsked) return;
      isAsked = true;
      scrub({ bytesPerSecond: STORE_SCRUB_BYTES_PER_SECOND })
        .catch((error: unknown) => {
          if (!ending.signal.aborted) log.error({ detail: describeError(error) }, 'reading the stored packages failed');
        })
        .finally(() => {
          isAsked = false;
        });
    },
    view: () => ({ isRunning: waiting > 0, last }),
    close: async () => {
      ending.abort(new PratiqueError('daemon-down/closing', 'the daemon is ending'));
      await queue;
    },
  };
}

/** What the doctor says of it. */
export function scrubLine({ isRunning, last }: ScrubView): DoctorLine {
  const check = 'stored packages';
  const now = isRunning ? '; being read again now' : '';
  if (last === null) return { check, state: 'ok', detail: `not read again yet${now}`, mend: null };
  const said = `read again at ${isoTime(last.endedAtMs)}: ${counted(last.checkedBlobs, 'package')}`;
  if (last.rottenBlobs === 0) return { check, state: 'ok', detail: `${said}, all sound${now}`, mend: null };
  const owners = [...new Set(last.rotten.flatMap((each) => each.owners))];
  const had = owners.length === 0 ? '' : ` (needed by ${printable(owners.join(', '), 300)})`;
  return {
    check,
    state: 'warning',
    detail: `${said}, ${last.rottenBlobs} damaged and taken out${had}${now}`,
    mend: 'look after the disk below the store; the packages are fetched again when they are needed; then: pratique store scrub',
  };
}

function resultOf(
  { checkedBlobs, checkedBytes, rotten }: ScrubReport,
  startedAtMs: number,
  endedAtMs: number,
): ScrubResult {
  const told = rotten
    .slice(0, SCRUB_ROTTEN_TOLD_MAX)
    .map(({ digest, fault, owners }) => ({ digest, fault, owners: [...owners] }));
  return { startedAtMs, endedAtMs, checkedBlobs, checkedBytes, rottenBlobs: rotten.length, rotten: told };
}

async function readLast(path: string, log: Log): Promise<ScrubResult | null> {
  try {
    return parseResult(parseJson(await readFile(path, 'utf8'), path, 'host-fault/scrub'), path);
  } catch (error) {
    const isMissing = error instanceof Error && 'code' in error && error.code === 'ENOENT';
    if (!isMissing)
      log.warn({ detail: describeError(error) }, 'what the last reading of the store found is not known any more');
    return null;
  }
}
