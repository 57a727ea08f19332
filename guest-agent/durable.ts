// Files of the agent: read within bounds, written so that a power cut leaves the old content or the new one.
import { findShapeFault, type JsonSchema } from '../src/base/json-shape.ts';
import { AGENT_SLICE_BYTES, AGENT_STATE_BYTES_MAX } from '../src/base/limits.ts';
import { AgentError, type Platform } from './platform/platform.ts';

/** The folder a path is in. */
export function parentOf(path: string): string {
  return path.slice(0, Math.max(1, path.lastIndexOf('/')));
}

/** A file's content, also of files in /proc whose size says 0; null if there is none. Throws AgentError `too-large`. */
export function readBytes(
  platform: Platform,
  path: string,
  sizeMax: number,
  open = platform.files.open,
): Uint8Array<ArrayBuffer> | null {
  const found = platform.files.stat(path);
  if (found === null) return null;
  const file = open(path);
  try {
    // One more than expected, so that the end is seen in one go.
    let bytes = new Uint8Array(Math.min(sizeMax, Math.max(found.sizeBytes, 4095)) + 1);
    let size = 0;
    for (let count = file.read(bytes); count > 0; count = file.read(bytes.subarray(size))) {
      size += count;
      if (size > sizeMax) throw new AgentError('too-large', `${path} has more than ${sizeMax} bytes`);
      if (size === bytes.length) {
        const larger = new Uint8Array(Math.min(sizeMax + 1, 2 * size));
        larger.set(bytes);
        bytes = larger;
      }
    }
    return bytes.subarray(0, size);
  } finally {
    file.close();
  }
}

/** A file's text; null if there is none. */
export function readText(platform: Platform, path: string, sizeMax: number): string | null {
  const bytes = readBytes(platform, path, sizeMax);
  return bytes === null ? null : platform.decode(bytes);
}

/** The first line of a small file of /proc or /sys, without its end; empty if it cannot be read. */
export function readLine(platform: Platform, path: string): string {
  try {
    return (readText(platform, path, 65_536) ?? '').split('\n', 1)[0] ?? '';
  } catch {
    return '';
  }
}

/** A state file; null if it is absent, damaged or of another form: it is never trusted blindly. */
export function readRecord<T>(platform: Platform, path: string, schema: JsonSchema): T | null {
  let value: unknown;
  try {
    const text = readText(platform, path, AGENT_STATE_BYTES_MAX);
    if (text === null) return null;
    value = JSON.parse(text);
  } catch (error) {
    platform.log(`${path} cannot be read and is ignored: ${error instanceof Error ? error.message : error}`);
    return null;
  }
  const fault = findShapeFault(schema, value);
  // The cast holds because each caller passes the schema that T is derived from.
  if (fault === null) return value as T;
  platform.log(`${path} is ignored: ${fault.field} ${fault.why}`);
  return null;
}

/** Writes beside the target, flushes, renames, flushes the folder. */
export function writeRecord(platform: Platform, path: string, value: unknown): void {
  writeDurably(platform, path, platform.encode(`${JSON.stringify(value)}\n`), 0o600);
}

/** Like writeRecord, for bytes. Makes the folder if it is missing. */
export function writeDurably(platform: Platform, path: string, bytes: Uint8Array<ArrayBuffer>, mode: number): void {
  const { files } = platform;
  makeFolders(platform, parentOf(path));
  const temporary = `${path}.new`;
  const file = files.create(temporary, mode);
  try {
    file.write(bytes);
    file.setMode(mode);
    file.sync();
  } finally {
    file.close();
  }
  files.rename(temporary, path);
  files.syncFolder(parentOf(path));
}

/** Removes a file for good; nothing happens if there is none. */
export function removeDurably(platform: Platform, path: string): void {
  if (platform.files.stat(path) === null) return;
  platform.files.remove(path);
  platform.files.syncFolder(parentOf(path));
}

/** Makes a folder and those above it. A symbolic link to a folder counts as one. */
export function makeFolders(platform: Platform, path: string): void {
  const { files } = platform;
  if (path === '/' || files.stat(`${path}/.`) !== null) return;
  makeFolders(platform, parentOf(path));
  files.makeFolder(path, 0o755);
  files.syncFolder(parentOf(path));
}

/** Removes a folder and all in it, without following symbolic links; nothing happens if there is none. */
export function removeTree(platform: Platform, path: string): void {
  const { files } = platform;
  const found = files.stat(path);
  if (found === null) return;
  if (found.kind === 'folder') for (const name of files.list(path)) removeTree(platform, `${path}/${name}`);
  files.remove(path);
}

/** SHA-256 of a file in slices, so that the channel is heard in between. */
export async function digestOfFile(platform: Platform, path: string): Promise<string> {
  const digest = platform.startDigest();
  const file = platform.files.open(path);
  try {
    let inSlice = 0;
    for (let count = 1; count > 0; ) {
      count = file.hashInto(digest, AGENT_SLICE_BYTES);
      inSlice += count;
      if (inSlice < AGENT_SLICE_BYTES) continue;
      inSlice = 0;
      await platform.clock.sleep(0);
    }
  } finally {
    file.close();
  }
  return digest.end();
}

/** SHA-256 of bytes. */
export function digestOfBytes(platform: Platform, bytes: Uint8Array<ArrayBuffer>): string {
  const digest = platform.startDigest();
  digest.add(bytes);
  return digest.end();
}
