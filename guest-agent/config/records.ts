// What configuration is applied, and what a set that is under way has to put back: kept on the guest's disk, without any content.

import { findShapeFault, type JsonSchema } from '../../src/base/json-shape.ts';
import { AGENT_STATE_BYTES_MAX } from '../../src/base/limits.ts';
import type { AppliedConfig } from '../../src/model/inventory.ts';
import { digestOfBytes, readRecord, removeDurably, removeTree, writeRecord } from '../durable.ts';
import { inRoot, type Paths } from '../paths.ts';
import { AgentError, type Platform } from '../platform/platform.ts';
import { type ConfigJournal, type ConfigRecord, EMBEDDED } from '../schemas.ts';
import { walkTo } from './place.ts';
import { readPlace } from './place-file.ts';
import { findBlock, fromBinary } from './text.ts';

export type AppliedItem = ConfigRecord['items'][number];
export type AppliedFile = AppliedItem['files'][number];

const recordPath = (paths: Paths) => `${paths.state}/config/applied.json`;
const journalPath = (paths: Paths) => `${paths.state}/config/journal.json`;
/** What was there before the last set: of the same owner and root's alone, because it may hold a secret. */
export const previousFolder = (paths: Paths) => `${paths.state}/config/previous`;

const NOTHING: ConfigRecord = { set: '', items: [] };

/** The applied items, and the set that applied them last. */
export function readApplied(platform: Platform, paths: Paths): ConfigRecord {
  return readRecord<ConfigRecord>(platform, recordPath(paths), EMBEDDED.configRecord) ?? NOTHING;
}

/** From here on the new set counts. */
export function writeApplied(platform: Platform, paths: Paths, record: ConfigRecord): void {
  mustFit(platform, EMBEDDED.configRecord, record);
  writeRecord(platform, recordPath(paths), record);
}

export function readJournal(platform: Platform, paths: Paths): ConfigJournal | null {
  return readRecord<ConfigJournal>(platform, journalPath(paths), EMBEDDED.configJournal);
}

/** From here on whatever is found is put back, until the set counts. */
export function writeJournal(platform: Platform, paths: Paths, journal: ConfigJournal): void {
  mustFit(platform, EMBEDDED.configJournal, journal);
  writeRecord(platform, journalPath(paths), journal);
}

/** What could not be read again would be taken for nothing at all. Throws AgentError `too-large`. */
function mustFit(platform: Platform, schema: JsonSchema, value: unknown): void {
  const fault = findShapeFault(schema, value);
  if (fault !== null) throw new AgentError('too-large', `the set is too large to be kept: ${fault.field} ${fault.why}`);
  if (platform.encode(JSON.stringify(value)).length < AGENT_STATE_BYTES_MAX) return;
  throw new AgentError('too-large', `what is kept of the set has more than ${AGENT_STATE_BYTES_MAX} bytes`);
}

export function forgetJournal(platform: Platform, paths: Paths): void {
  removeDurably(platform, journalPath(paths));
}

/** The set before is not needed any more: what was kept of it goes, and the secrets in it. */
export function forgetPrevious(platform: Platform, paths: Paths): void {
  if (readJournal(platform, paths) === null) removeTree(platform, previousFolder(paths));
}

/** The items as the inventory has them, each with whether somebody changed what it had set. */
export function listConfig(platform: Platform, paths: Paths): readonly AppliedConfig[] {
  return readApplied(platform, paths).items.map(({ item, version, files }) => {
    const isAsApplied = files.every((file) => isFileAsApplied(platform, paths, item, file));
    return isAsApplied ? { item, version } : { item, version, state: 'changed' };
  });
}

/** Whether what is there is what the item had set. */
export function isFileAsApplied(platform: Platform, paths: Paths, item: string, file: AppliedFile): boolean {
  if (file.watch === 'none') return true;
  try {
    const walk = walkTo(platform, paths, file.path);
    if (walk.kind === 'missing') return false;
    try {
      const found = platform.files.stat(walk.place.path);
      if (found?.kind !== 'file') return false;
      const isSameAccess = found.mode === file.mode && found.uid === file.uid && found.gid === file.gid;
      if (file.watch === 'whole' && !isSameAccess) return false;
      return watchedDigest(platform, item, file.watch, readPlace(platform, walk.place.path)) === file.digest;
    } finally {
      walk.place.folder.close();
    }
  } catch (error) {
    // A link in its way, or more than is read: it is not what was applied.
    if (error instanceof AgentError) return false;
    throw error;
  }
}

/** The digest of what is the item's in a file; null where there is nothing of it. */
export function watchedDigest(
  platform: Platform,
  item: string,
  watch: AppliedFile['watch'],
  content: string | null,
): string | null {
  const own = content === null || watch === 'none' ? null : watch === 'whole' ? content : findBlock(content, item);
  return own === null ? null : digestOfBytes(platform, fromBinary(own));
}

/** A path of the guest, for messages and searches by name. */
export function isBelowUnits(paths: Paths, path: string): boolean {
  return inRoot(paths, path).includes('/systemd/system/');
}
