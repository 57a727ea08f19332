// Reads and writes a file at a place, so that a power cut leaves the old content or the new one.
import { AGENT_CONFIG_PREVIOUS_BYTES_MAX } from '../../src/base/limits.ts';
import { readBytes } from '../durable.ts';
import type { Platform } from '../platform/platform.ts';
import type { Place } from './place.ts';
import { type Binary, fromBinary, toBinary } from './text.ts';

export type Access = { readonly mode: number; readonly uid: number; readonly gid: number };

/** The content of a file; null if there is none. Throws AgentError `too-large`. */
export function readPlace(platform: Platform, path: string): Binary | null {
  if (platform.files.stat(path)?.kind !== 'file') return null;
  // Its folder may be a user's, who can put a link or a pipe there after that look.
  const bytes = readBytes(platform, path, AGENT_CONFIG_PREVIOUS_BYTES_MAX, platform.files.openPlain);
  return bytes === null ? null : toBinary(bytes);
}

/** Beside the file, flushed, with its owner and mode, then in its place. Nobody else can read it before it has its mode. */
export function writePlace(
  { files }: Platform,
  place: Place,
  temporary: string,
  content: Binary,
  access: Access,
): void {
  const beside = `${place.folder.path}/${temporary}`;
  const file = files.create(beside, 0o600);
  try {
    file.write(fromBinary(content));
    file.setOwner(access.uid, access.gid);
    // After the owner: a change of owner takes set-user-id away.
    file.setMode(access.mode);
    file.sync();
  } finally {
    file.close();
  }
  files.rename(beside, place.path);
  files.syncFolder(place.folder.path);
}

/** Takes away what is there; a folder stays. */
export function removePlace({ files }: Platform, place: Place): void {
  const found = files.stat(place.path);
  if (found === null || found.kind === 'folder') return;
  files.remove(place.path);
  files.syncFolder(place.folder.path);
}
