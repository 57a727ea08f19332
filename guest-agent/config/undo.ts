// Puts back what a set of configuration changed: after a failure, and at the next start after a power cut. Safe to be broken off itself.

import { AGENT_CONFIG_PREVIOUS_BYTES_MAX } from '../../src/base/limits.ts';
import { readBytes } from '../durable.ts';
import type { Paths } from '../paths.ts';
import { AgentError, type Platform } from '../platform/platform.ts';
import type { ConfigJournal } from '../schemas.ts';
import { type Place, walkTo } from './place.ts';
import { removePlace, writePlace } from './place-file.ts';
import { forgetJournal, isBelowUnits, previousFolder, readApplied, readJournal } from './records.ts';
import { reloadUnits, runStepBack } from './steps.ts';
import { toBinary } from './text.ts';

type Before = ConfigJournal['places'][number];

/** Name beside a file while it is written; the number is its place in the journal. */
export const temporaryName = (index: number): string => `.pratique-config-${index}`;

/**
 * Files of a broken-off set as they were. The answer is the journal of what is to be done yet by `finishUndo`; null if there is
 * nothing. Called at every start, before anything is reported.
 */
export function undoFiles(platform: Platform, paths: Paths): ConfigJournal | null {
  const journal = readJournal(platform, paths);
  if (journal === null) return null;
  if (readApplied(platform, paths).set === journal.set) {
    forgetJournal(platform, paths); // It counts already: only this was left to do.
    return null;
  }
  let stuck: AgentError | null = null;
  const attempt = (step: () => void): void => {
    try {
      step();
    } catch (error) {
      if (!(error instanceof AgentError)) throw error;
      stuck ??= error;
    }
  };
  // One that somebody put a link in the way of, say, keeps no other from being as it was.
  for (const [index, before] of [...journal.places.entries()].reverse())
    attempt(() => putBack(platform, paths, before, index));
  for (const folder of journal.folders.toReversed()) attempt(() => removeIfEmpty(platform, paths, folder));
  if (stuck !== null) throw stuck;
  return journal;
}

/** What made the new files count makes the old ones count again. */
export async function finishUndo(
  platform: Platform,
  paths: Paths,
  journal: ConfigJournal,
  isAdmitted: boolean,
): Promise<void> {
  if (journal.places.some(({ path }) => isBelowUnits(paths, path))) await reloadUnits(platform, paths);
  for (const step of journal.steps.toReversed()) await runStepBack(platform, paths, step, isAdmitted);
  forgetJournal(platform, paths);
}

function putBack(platform: Platform, paths: Paths, before: Before, index: number): void {
  const walk = walkTo(platform, paths, before.path);
  if (walk.kind === 'missing') {
    // Its folder was not made yet, so the file was not written.
    if (before.kind === 'absent') return;
    throw new AgentError('rollback-failed', `the folder of ${before.path} is gone`);
  }
  const { place } = walk;
  try {
    removeTemporary(platform, place, index);
    restore(platform, paths, place, before, index);
  } finally {
    place.folder.close();
  }
}

function restore(platform: Platform, paths: Paths, place: Place, before: Before, index: number): void {
  const { files } = platform;
  switch (before.kind) {
    case 'absent':
      removePlace(platform, place);
      return;
    case 'symlink': {
      const beside = `${place.folder.path}/${temporaryName(index)}`;
      files.symlink(before.target ?? '', beside);
      files.rename(beside, place.path);
      files.syncFolder(place.folder.path);
      return;
    }
    case 'file': {
      const kept = readBytes(platform, `${previousFolder(paths)}/${index}`, AGENT_CONFIG_PREVIOUS_BYTES_MAX);
      if (kept === null) throw new AgentError('rollback-failed', `what ${before.path} was is not kept any more`);
      writePlace(platform, place, temporaryName(index), toBinary(kept), before);
      return;
    }
    default:
      before.kind satisfies never;
  }
}

function removeTemporary({ files }: Platform, place: Place, index: number): void {
  const beside = `${place.folder.path}/${temporaryName(index)}`;
  if (files.stat(beside) === null) return;
  files.remove(beside);
  files.syncFolder(place.folder.path);
}

/** Somebody else may have put a file into it meanwhile; then it stays. */
function removeIfEmpty(platform: Platform, paths: Paths, folder: string): void {
  const walk = walkTo(platform, paths, folder);
  if (walk.kind === 'missing') return;
  const { place } = walk;
  const { files } = platform;
  try {
    if (files.stat(place.path)?.kind !== 'folder' || files.list(place.path).length > 0) return;
    files.remove(place.path);
    files.syncFolder(place.folder.path);
  } finally {
    place.folder.close();
  }
}
