// One long-lived `nft -j -i`: commands go in line by line, each request ends with a listing that tells that it was done.
// Starting nft anew for every change took 35 s for 99 at once; a change through this takes milliseconds.
import { type ChildProcess, spawn } from 'node:child_process';
import type { Clock } from '../base/clock.ts';
import { makeLineSplitter } from '../base/json-lines.ts';
import { NFT_ANSWER_TIMEOUT_MS, NFT_LINE_CHARS_MAX, NFT_STARTS_MAX } from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { parseJson } from '../base/parse.ts';
import { printable } from '../base/printable.ts';
import { HypervisorError } from './errors.ts';
import { enterPrefix } from './namespace.ts';
import type { Namespace } from './vm-spec.ts';

export type NftAnswer = {
  /** JSON of the listing that was asked for; null when nft refused it. */
  readonly listing: unknown;
  /** What nft complained about meanwhile; empty when nothing. */
  readonly complaint: string;
};

export type NftSession = {
  /**
   * Runs the commands (each a line, hence a transaction) and then the listing. Requests are answered in order. A dead nft is
   * started again and the request repeated: commands must be idempotent. Throws HypervisorError when nft does not answer.
   */
  readonly request: (commands: readonly string[], listing: string) => Promise<NftAnswer>;
  readonly close: () => void;
};

// nft prints exactly one JSON line for it, even when there is no table at all: the sign that everything before is done.
const MARKER = 'list tables';

/** Opens a session in the namespace; nft is started with the first request. */
export function openNftSession(options: {
  readonly namespace: Namespace;
  readonly clock: Clock;
  readonly log: Log;
}): NftSession {
  let process: NftProcess | null = null;
  let turn: Promise<unknown> = Promise.resolve();
  let isClosed = false;

  const attempt = async (commands: readonly string[], listing: string): Promise<NftAnswer> => {
    for (let started = 1; ; started += 1) {
      if (isClosed) throw new HypervisorError('host-fault/fence-closed', 'the fence was closed by ourselves');
      process ??= startNft(options.namespace, options.clock);
      try {
        return await process.request(commands, listing);
      } catch (cause) {
        process.end();
        process = null;
        if (started >= NFT_STARTS_MAX || isClosed) throw cause;
        options.log.warn({ err: cause }, 'nft ended; starting it again');
      }
    }
  };
  return {
    request: (commands, listing) => {
      const mine = turn.then(() => attempt(commands, listing));
      turn = mine.catch(() => {});
      return mine;
    },
    close: () => {
      isClosed = true;
      process?.end();
      process = null;
    },
  };
}

type NftProcess = {
  readonly request: (commands: readonly string[], listing: string) => Promise<NftAnswer>;
  readonly end: () => void;
};

/** A request whose lines are still to come. */
type Pending = {
  listing: unknown;
  readonly resolve: (listing: unknown) => void;
  readonly reject: (error: HypervisorError) => void;
};

function startNft(namespace: Namespace, clock: Clock): NftProcess {
  const [program = 'nft', ...args] = [...enterPrefix(namespace), 'nft', '-j', '-i'];
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  const splitter = makeLineSplitter(NFT_LINE_CHARS_MAX);
  const pending: Pending[] = [];
  let complaint = '';
  let failure: HypervisorError | null = null;

  const fail = (detail: string, cause?: unknown) => {
    const next = 'check that nft is installed, that we may use it, and that the namespace exists';
    failure ??= new HypervisorError('host-fault/fence', `nft of the fence: ${printable(detail, 400)}`, { cause, next });
    for (const each of pending.splice(0)) each.reject(failure);
    child.kill('SIGKILL');
  };
  const take = (line: string) => {
    const [first] = pending;
    if (first === undefined) return;
    const document = parseJson(line, "nft's answer", 'host-fault/fence-listing');
    // Every listing we ask for has sets or chains in it; the marker's has tables only.
    if (isMarker(document)) pending.shift();
    else first.listing = document;
    // A listing is proof enough that all before it was done. The marker tells that there will be none; it may come later.
    first.resolve(first.listing);
  };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    const { lines, overflow } = splitter.push(text);
    try {
      for (const line of lines) if (line.trim() !== '') take(line);
    } catch (cause) {
      fail('it printed something that is not JSON', cause);
    }
    if (overflow) fail(`it printed a line longer than ${NFT_LINE_CHARS_MAX} characters`);
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint = (complaint + text).slice(-2000);
  });
  child.stdin.on('error', () => {}); // EPIPE: 'close' below tells.
  child.on('error', (cause) => fail('it could not be started', cause));
  child.on('close', (code, signal) => fail(`it ended (${signal ?? `exit code ${code}`}) ${complaint}`));
  keepAlive(child, false);

  return {
    request: async (commands, listing) => {
      if (failure !== null) throw failure;
      complaint = '';
      const { promise, resolve, reject } = Promise.withResolvers<unknown>();
      pending.push({ listing: null, resolve, reject });
      keepAlive(child, true);
      const cancel = clock.after(NFT_ANSWER_TIMEOUT_MS, () => fail(`no answer within ${NFT_ANSWER_TIMEOUT_MS} ms`));
      child.stdin.write([...commands, listing, MARKER, ''].join('\n'));
      const listed = await promise.finally(() => {
        cancel();
        keepAlive(child, false);
      });
      // Complaints come by another pipe and may arrive after the answer they belong to.
      if (listed === null) await clock.sleep(20);
      return { listing: listed, complaint };
    },
    end: () => fail('we ended it'),
  };
}

function isMarker(document: unknown): boolean {
  if (typeof document !== 'object' || document === null || !('nftables' in document)) return false;
  const { nftables } = document;
  return (
    Array.isArray(nftables) &&
    nftables.every((entry) => typeof entry === 'object' && entry !== null && ('metainfo' in entry || 'table' in entry))
  );
}

/** An idle fence does not keep the program alive; a request under way does. */
function keepAlive(child: ChildProcess, isBusy: boolean): void {
  for (const part of [child, child.stdin, child.stdout, child.stderr]) {
    // The streams of a child are sockets, which can be let go of; their declared type does not say so.
    const holder = part as { ref?: () => void; unref?: () => void } | null;
    if (isBusy) holder?.ref?.();
    else holder?.unref?.();
  }
}
