// Keeps the image cache bounded: what newer inputs have superseded goes, unless it was asked for a short while ago.
import { readdir, rm, stat, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, systemClock } from '../src/base/clock.ts';
import { tryCommand } from '../src/base/run-command.ts';
import { asRootPrefix } from './as-root.ts';

/**
 * Milliseconds after its last use for which an entry is never removed. A full test run takes four hours at most, builds images
 * with several agents, and starts VMs whose disks are overlays on them.
 */
const IN_USE_MS = 6 * 60 * 60 * 1000;

/** Notes that an entry of the cache is being used now. */
export async function markUsed(path: string, clock: Clock = systemClock): Promise<void> {
  const seconds = clock.nowMs() / 1000;
  await utimes(path, seconds, seconds);
}

/**
 * Removes the entries of a folder whose names match, except the newest `keep` and those used within the last hours. Returns the
 * removed names. An entry that cannot be removed stays and is tried again the next time.
 */
export async function pruneCache(options: {
  readonly folder: string;
  readonly pattern: RegExp;
  readonly keep: number;
  readonly clock?: Clock;
}): Promise<readonly string[]> {
  const { folder, pattern, keep, clock = systemClock } = options;
  const names = (await readdir(folder)).filter((name) => pattern.test(name));
  const entries = await Promise.all(names.map(async (name) => ({ name, usedAtMs: await timeOf(join(folder, name)) })));
  const newestFirst = entries.toSorted((a, b) => b.usedAtMs - a.usedAtMs);
  const superseded = newestFirst.slice(keep).filter(({ usedAtMs }) => usedAtMs < clock.nowMs() - IN_USE_MS);
  for (const { name } of superseded) await removeTree(join(folder, name));
  return superseded.map(({ name }) => name);
}

/** Removes a folder that may hold files of ids which, without root, only a user namespace has. */
export async function removeTree(path: string): Promise<void> {
  const removed = await rm(path, { recursive: true, force: true }).then(
    () => true,
    () => false,
  );
  if (!removed) await tryCommand([...asRootPrefix('all'), 'rm', '-rf', path], { purpose: `removing ${path}` });
}

async function timeOf(path: string): Promise<number> {
  return await stat(path).then(
    (found) => found.mtimeMs,
    () => 0,
  );
}
