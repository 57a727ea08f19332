// Reads from a package's own changelog which holes its versions mend. Hostile input: bounded in bytes, entries and time. deb-changelog(5).
import { spawn } from 'node:child_process';
import { Readable } from 'node:stream';
import { constants, createGunzip } from 'node:zlib';
import { extract } from 'tar-stream';
import type { Clock } from '../../base/clock.ts';
import {
  ADVISORIES_PER_CHANGELOG_MAX,
  CHANGELOG_BYTES_MAX,
  CHANGELOG_SEARCH_BYTES_MAX,
  COMMAND_TIMEOUT_MS,
  NAME_CHARS_MAX,
} from '../../base/limits.ts';
import { isDebianVersion } from './version.ts';

export type ChangelogEntry = { readonly version: string; readonly advisories: readonly string[] };
export type Changelog = { readonly source: string; readonly entries: readonly ChangelogEntry[] };

/** `source (version) distribution; urgency=…` */
const HEADING = /^([a-z0-9][a-z0-9+.-]*) \(([^\s()]+)\) /;
const ADVISORY = /\bCVE-\d{4}-\d{4,7}\b/g;

/** The entries that name a CVE, of the source package the first entry names. Undefined where it is no changelog. */
export function parseChangelog(text: string): Changelog | undefined {
  const found = new Map<string, Set<string>>();
  let source: string | undefined;
  let current: Set<string> | undefined;
  let count = 0;
  for (const line of text.split('\n')) {
    const [, name, version] = HEADING.exec(line) ?? [];
    if (name !== undefined && version !== undefined) {
      source ??= name;
      const isOurs = name === source && version.length <= NAME_CHARS_MAX && isDebianVersion(version);
      current = isOurs ? new Set() : undefined;
      if (current !== undefined) found.set(version, current);
      continue;
    }
    for (const [id] of line.matchAll(ADVISORY)) {
      count += 1;
      if (count <= ADVISORIES_PER_CHANGELOG_MAX) current?.add(id);
    }
  }
  if (source === undefined) return undefined;
  const entries = [...found].map(([version, ids]) => ({ version, advisories: [...ids].sort() }));
  return { source, entries: entries.filter(({ advisories }) => advisories.length > 0) };
}

/** At most so many bytes of a stream; the newest entries come first, so the rest is old. */
async function readBeginning(bytes: AsyncIterable<unknown>): Promise<Buffer> {
  const pieces: Buffer[] = [];
  let sizeBytes = 0;
  for await (const piece of bytes) {
    // The cast holds: streams without an encoding give Buffers.
    const buffer = piece as Buffer;
    pieces.push(buffer);
    sizeBytes += buffer.length;
    if (sizeBytes >= CHANGELOG_BYTES_MAX) break;
  }
  return Buffer.concat(pieces).subarray(0, CHANGELOG_BYTES_MAX);
}

async function readText(entry: AsyncIterable<unknown>, isPacked: boolean): Promise<string> {
  const bytes = await readBeginning(entry);
  if (!isPacked) return bytes.toString('utf8');
  // What was cut off above is unpacked as far as it goes.
  const unpacked = Readable.from([bytes]).pipe(createGunzip({ finishFlush: constants.Z_SYNC_FLUSH }));
  return (await readBeginning(unpacked)).toString('utf8');
}

/**
 * The changelog of a downloaded package, undefined where it has none (its documentation may be a link into another package).
 * Throws what dpkg-deb, the tar or the packing object to, and when the package is too large to be searched.
 */
export async function readChangelog(path: string, name: string, clock: Clock): Promise<Changelog | undefined> {
  const folder = `usr/share/doc/${name}/`;
  const wanted = ['changelog.Debian.gz', 'changelog.gz', 'changelog.Debian', 'changelog'].map((one) => folder + one);
  // dpkg-deb unpacks beside us, and it is stopped as soon as the changelog was seen.
  const child = spawn('dpkg-deb', ['--fsys-tarfile', path], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const cancel = clock.after(COMMAND_TIMEOUT_MS, () => void child.kill('SIGKILL'));
  const tar = extract();
  child.on('error', (error) => tar.destroy(error));
  let searchedBytes = 0;
  child.stdout.on('data', (piece: Buffer) => {
    searchedBytes += piece.length;
    if (searchedBytes > CHANGELOG_SEARCH_BYTES_MAX) tar.destroy(new Error('no changelog near the beginning'));
  });
  child.stdout.pipe(tar);
  try {
    for await (const entry of tar) {
      const found = entry.header.name.replace(/^\.\//, '');
      if (entry.header.type === 'file' && wanted.includes(found)) {
        return parseChangelog(await readText(entry, found.endsWith('.gz')));
      }
      entry.resume();
    }
    return undefined;
  } finally {
    cancel();
    child.kill('SIGKILL');
    tar.destroy();
  }
}
