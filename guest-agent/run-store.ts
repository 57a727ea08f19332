// The run this guest is in, on disk: its results survive power cuts, restarts of the agent and new sessions.
import type { HostBodyOf } from '../src/guest/messages.ts';
import { isContentCode } from '../src/model/quarantine.ts';
import type { ItemResult } from '../src/model/result.ts';
import { asciiJson } from './ascii-json.ts';
import { readRecord, writeRecord } from './durable.ts';
import type { Paths } from './paths.ts';
import type { Platform } from './platform/platform.ts';
import { EMBEDDED, type RunRecord } from './schemas.ts';

type Offer = HostBodyOf<'offer'>;

/** Characters of results, as JSON, that a message and the record hold: room is left for an inventory beside them. */
const RESULTS_CHARS_MAX = 1024 * 1024;
const OUTPUT_CHARS_WHEN_CROWDED = 60;

export class RunStore {
  readonly #platform: Platform;
  readonly #path: string;
  #record: RunRecord | null;

  constructor(platform: Platform, paths: Paths) {
    this.#platform = platform;
    this.#path = `${paths.state}/run.json`;
    this.#record = readRecord<RunRecord>(platform, this.#path, EMBEDDED.runRecord);
  }

  /** The record of a run; null if this guest knows nothing of it. */
  ofRun(run: string): RunRecord | null {
    return this.#record?.run === run ? this.#record : null;
  }

  /**
   * The record of exactly this offer; null if it was never begun. One that ended because of what the drive showed is not finished:
   * the host offers it again when it has looked at its copies.
   */
  ofOffer(offer: Offer, vm: string): RunRecord | null {
    const record = this.ofRun(offer.run);
    const isSame = record?.manifestDigest === offer.manifestDigest && record.planDigest === offer.planDigest;
    if (record === null || !isSame || record.vm !== vm) return null;
    if (!record.isFinished || !record.results.some(({ code }) => isContentCode(code ?? ''))) return record;
    return { ...record, isFinished: false, results: record.results.filter(({ outcome }) => outcome === 'installed') };
  }

  /** Begins an offer, or goes on with one that was broken off. */
  begin(offer: Offer, vm: RunRecord['vm']): RunRecord {
    const known = this.ofOffer(offer, vm);
    if (known !== null) return known === this.#record ? known : this.#write(known);
    const before = this.ofRun(offer.run);
    return this.#write({
      run: offer.run,
      vm,
      planDigest: offer.planDigest,
      manifestDigest: offer.manifestDigest,
      isFinished: false,
      results: [],
      earlier: before === null ? [] : [...allResults(before)],
    });
  }

  addResults(results: readonly ItemResult[]): void {
    const record = this.#begun();
    this.#write({ ...record, results: [...fitResults(this.#platform, [...record.results, ...results])] });
  }

  finish(): RunRecord {
    return this.#write({ ...this.#begun(), isFinished: true });
  }

  #begun(): RunRecord {
    if (this.#record === null) throw new Error('assertion failed: no run was begun');
    return this.#record;
  }

  #write(record: RunRecord): RunRecord {
    writeRecord(this.#platform, this.#path, record);
    this.#record = record;
    return record;
  }
}

/** Results of the whole run: an item that came in several manifests has its last one. */
export function allResults(record: RunRecord): readonly ItemResult[] {
  const byItem = new Map([...record.earlier, ...record.results].map((result) => [result.item, result]));
  return [...byItem.values()];
}

/** Results short enough to travel: outputs of what went well go first, then the rest is shortened. */
function fitResults(platform: Platform, results: readonly ItemResult[]): readonly ItemResult[] {
  const isFit = (candidates: readonly ItemResult[]): boolean =>
    asciiJson(platform.encode, candidates).length <= RESULTS_CHARS_MAX;
  if (isFit(results)) return results;
  const without = results.map(({ output, ...result }) => {
    return output === undefined || result.outcome === 'installed' ? result : { ...result, output };
  });
  if (isFit(without)) return without;
  return without.map((result) =>
    'output' in result && result.output !== undefined
      ? { ...result, output: result.output.slice(-OUTPUT_CHARS_WHEN_CROWDED) }
      : result,
  );
}
