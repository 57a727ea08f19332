// A configuration server as this host believes it: asked by ETag, its documents verified, the last good one of each VM kept.
//
// Refused, with the last good document staying in force: another signer, another VM, a lower serial, another document under a known
// serial, one that has expired. A server that is away changes nothing until the document expires, and its grace with it.
import { type Clock, isoTime, trustedNowMs } from '../base/clock.ts';
import { digestOf } from '../base/digest.ts';
import type { VerifyKey } from '../base/dsse.ts';
import { describeError, PratiqueError } from '../base/errors.ts';
import { GUEST_CONFIG_ASKED_AT_ONCE_MAX, GUEST_CONFIG_AWAY_MS, GUEST_CONFIG_RECHECK_MS } from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { makeSlots } from '../base/slots.ts';
import { isVmId } from '../model/ids.ts';
import { GuestConfigError } from './error.ts';
import type { ServerWord } from './guest-config.ts';
import { type Kept, openKeptDocuments } from './kept-documents.ts';
import { type OpenedDocument, openDocument, readEnvelope } from './server-document.ts';
import type { ServerTransport } from './server-transport.ts';

export type ConfigServerOptions = {
  /** Documents are at `URL/v1/vms/NAME`. */
  readonly url: string;
  readonly keys: readonly VerifyKey[];
  /** How long a document counts after it expired. */
  readonly graceMs: number;
  /** A VM without a document gets no plan. */
  readonly isRequired: boolean;
  readonly folder: string;
  readonly transport: ServerTransport;
  readonly clock: Clock;
  readonly log: Log;
};

export type ConfigServer = {
  /** What counts for a VM now; the server is asked first unless it was just asked. Never throws for what the server does. */
  readonly documentOf: (vm: string) => Promise<ServerWord>;
  /** Asks for the documents of these VMs, a few at a time. */
  readonly refresh: (vms: readonly string[], signal: AbortSignal) => Promise<void>;
  /** A VM is gone: its document goes, its serial stays. */
  readonly forget: (vm: string) => Promise<void>;
  readonly close: () => Promise<void>;
};

/** How the last question about a VM ended. */
type Asked = {
  readonly atMs: number;
  readonly outcome: { readonly kind: 'fine' | 'none' } | { readonly kind: 'away' | 'refused'; readonly detail: string };
};

/** Opens it; nothing is asked yet. Throws the file system's error. */
export async function openConfigServer(options: ConfigServerOptions): Promise<ConfigServer> {
  const { clock, log, transport } = options;
  const documents = await openKeptDocuments(options.folder);
  const asked = new Map<string, Asked>();
  const asking = new Map<string, Promise<void>>();
  const slots = makeSlots(GUEST_CONFIG_ASKED_AT_ONCE_MAX);
  const ending = new AbortController();
  let awayUntilMs = Number.NEGATIVE_INFINITY;
  const isAway = (): boolean => clock.monotonicMs() < awayUntilMs;

  const askOnce = async (vm: string): Promise<void> => {
    const note = (outcome: Asked['outcome']) => asked.set(vm, { atMs: clock.monotonicMs(), outcome });
    try {
      note({ kind: await ask(options, documents, vm, ending.signal) });
    } catch (error) {
      ending.signal.throwIfAborted();
      if (!(error instanceof PratiqueError)) throw error;
      const detail = describeError(error);
      if (error.code === 'vendor-ill/guest-config-away') awayUntilMs = clock.monotonicMs() + GUEST_CONFIG_AWAY_MS;
      note({ kind: error.code.startsWith('vendor-ill/') ? 'away' : 'refused', detail });
      log.warn({ vm, detail }, 'the configuration server brought nothing for a VM');
    }
  };
  /** One question at a time for each VM: whoever asks meanwhile shares its answer. */
  const askFor = (vm: string, isSkipped = () => false): Promise<void> => {
    const begin = () => slots.withSlot(ending.signal, async () => (isSkipped() ? undefined : await askOnce(vm)));
    const running = asking.get(vm) ?? begin();
    asking.set(vm, running);
    const done = () => {
      if (asking.get(vm) === running) asking.delete(vm);
    };
    running.then(done, done);
    return running;
  };
  /** A VM that has a document does not wait for a server that has just been found away; one without it always asks. */
  const isDue = (vm: string, kept: Kept | null): boolean => {
    const last = asked.get(vm);
    if (isAway() && kept?.envelope != null) return false;
    if (last === undefined || last.outcome.kind === 'away') return true;
    return clock.monotonicMs() - last.atMs >= GUEST_CONFIG_RECHECK_MS;
  };
  return {
    documentOf: async (vm) => {
      if (!isVmId(vm)) return { layer: null, trouble: [`${vm} is no name of a VM`], remarks: [] };
      const isStillDue = async () => isDue(vm, await documents.load(vm));
      const before = asked.get(vm);
      if (await isStillDue()) await askFor(vm);
      // A round of all VMs that found the server away has passed this one over: of it nothing was asked yet.
      if (asked.get(vm) === before && (await isStillDue())) await askFor(vm);
      return await wordOf(options, await documents.load(vm), { vm, last: asked.get(vm) ?? null });
    },
    refresh: async (vms, signal) => {
      const isSkipped = () => signal.aborted || isAway();
      await Promise.all(vms.filter(isVmId).map((vm) => askFor(vm, isSkipped)));
    },
    forget: async (vm) => {
      asked.delete(vm);
      await asking.get(vm)?.catch(() => {}); // Whoever asked has its error.
      const kept = await documents.load(vm);
      if (kept !== null) await documents.save({ ...kept, envelope: null, etag: null });
    },
    close: async () => {
      ending.abort();
      await Promise.allSettled(asking.values());
      await transport.close();
    },
  };
}

/** Asks once and keeps what is good. Throws GuestConfigError `vendor-ill/…` when away, `refused/…` for what is not believed. */
async function ask(
  options: ConfigServerOptions,
  documents: Awaited<ReturnType<typeof openKeptDocuments>>,
  vm: string,
  signal: AbortSignal,
): Promise<'fine' | 'none'> {
  const url = addressOf(options.url, vm);
  const kept = await documents.load(vm);
  const isHeld = kept !== null && kept.url === url && isBelieved(options, kept);
  const answer = await options.transport.get(url, isHeld ? kept.etag : null, signal);
  const fetchedAtMs = trustedNowMs(options.clock);
  if (answer.kind === 'none') return 'none';
  if (answer.kind === 'not-modified') {
    if (kept !== null) await documents.save({ ...kept, fetchedAtMs });
    return 'fine';
  }
  const opened = openDocument(readEnvelope(answer.text, url), { url, vm, keys: options.keys });
  const { envelope, document } = opened;
  const digest = digestOf(Buffer.from(envelope.payload, 'base64'));
  refuseOld(options, opened, { kept, digest, url });
  await documents.save({
    format: 'pratique.guest-config-kept/1',
    vm: document.vm,
    serial: document.serial,
    digest,
    envelope,
    url,
    etag: answer.etag,
    fetchedAtMs,
  });
  return 'fine';
}

type Known = { readonly kept: Kept | null; readonly digest: string; readonly url: string };

function refuseOld(options: ConfigServerOptions, opened: OpenedDocument, { kept, digest, url }: Known): void {
  const { serial, expiresAt } = opened.document;
  if (kept !== null && serial < kept.serial) {
    throw new GuestConfigError(
      'refused/guest-config-rollback',
      `${url}: serial ${serial} is older than ${kept.serial}`,
      {
        next: 'mend the server: it serves what it had before, or somebody else does',
      },
    );
  }
  if (kept !== null && serial === kept.serial && digest !== kept.digest) {
    throw new GuestConfigError(
      'refused/guest-config-serial',
      `${url}: another document under the known serial ${serial}`,
      {
        next: 'sign it again with a greater serial',
      },
    );
  }
  if (trustedNowMs(options.clock) > opened.expiresAtMs + options.graceMs) {
    throw new GuestConfigError('refused/guest-config-expired', `${url}: serial ${serial} expired at ${expiresAt}`, {
      next: 'sign it again with a later expiry and a greater serial',
    });
  }
}

const addressOf = (url: string, vm: string): string => `${url.replace(/\/+$/, '')}/v1/vms/${encodeURIComponent(vm)}`;

function isBelieved(options: ConfigServerOptions, kept: Kept): boolean {
  try {
    return openKept(options, kept) !== null;
  } catch {
    return false; // Then it is asked for as if there were none, and `wordOf` says why.
  }
}

function openKept({ keys }: ConfigServerOptions, { envelope, url, vm }: Kept): OpenedDocument | null {
  return envelope === null ? null : openDocument(envelope, { url, vm, keys });
}

type LastAsked = { readonly vm: string; readonly last: Asked | null };

async function wordOf(options: ConfigServerOptions, kept: Kept | null, { vm, last }: LastAsked): Promise<ServerWord> {
  const outcome = last?.outcome ?? { kind: 'fine' };
  const detail = 'detail' in outcome ? outcome.detail : null;
  let opened: OpenedDocument | null = null;
  try {
    opened = kept === null ? null : openKept(options, kept);
  } catch (error) {
    if (!(error instanceof PratiqueError)) throw error;
    return {
      layer: null,
      trouble: [`the kept document is not believed any more: ${describeError(error)}`],
      remarks: [],
    };
  }
  if (opened === null || kept === null) return withoutDocument(options, vm, detail);
  const remarks: string[] = [];
  const nowMs = trustedNowMs(options.clock);
  const { serial, expiresAt } = opened.document;
  const since = `serial ${serial}, confirmed last at ${isoTime(kept.fetchedAtMs)}, counts on`;
  if (outcome.kind === 'away') remarks.push(`the configuration server is away; its document of ${since}: ${detail}`);
  if (outcome.kind === 'refused') remarks.push(`a document of the server is refused; the one of ${since}: ${detail}`);
  if (outcome.kind === 'none') remarks.push(`the server has no document for it any more; the one of ${since}`);
  if (nowMs > opened.expiresAtMs + options.graceMs) {
    const text = `the document of the configuration server, serial ${serial}, expired at ${expiresAt}`;
    return { layer: null, trouble: [text], remarks };
  }
  if (nowMs > opened.expiresAtMs)
    remarks.push(`serial ${serial} of the configuration server expired at ${expiresAt}; its grace runs`);
  return { layer: opened.layer, trouble: [], remarks };
}

/** A server that could not be asked yet may have an address for the VM: without it nothing is known, and that is no configuration. */
function withoutDocument({ isRequired }: ConfigServerOptions, vm: string, detail: string | null): ServerWord {
  const none = { layer: null, remarks: [] };
  if (detail !== null) return { ...none, trouble: [`there is no document of the configuration server yet: ${detail}`] };
  if (!isRequired) return { ...none, trouble: [] };
  return { ...none, trouble: [`the configuration server has no document for ${vm}, and it is required`] };
}
