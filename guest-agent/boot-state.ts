// What the agent remembers from boot to boot: versions at the last shutdown, and whether a reboot is due.
import type { InstalledProduct } from '../src/model/inventory.ts';
import { listConfig } from './config/records.ts';
import { readRecord, removeDurably, writeRecord } from './durable.ts';
import { isKernelDue, noteKernelTried } from './kernel-state.ts';
import { type Paths, runFolder } from './paths.ts';
import type { Platform } from './platform/platform.ts';
import { type BootRecord, EMBEDDED, type RebootRecord, type ShutdownRecord } from './schemas.ts';

/** The present boot, and what was recorded when the one before it ended (A6). */
export type BootState = BootRecord;

const bootPath = (paths: Paths) => `${paths.state}/boot.json`;
const shutdownPath = (paths: Paths) => `${paths.state}/shutdown.json`;
const rebootPath = (paths: Paths) => `${paths.state}/reboot.json`;

/**
 * Finds out what is known of the boot before. A record counts only if it is of the boot that came right before this
 * one: after a crash there is none, and an older one would be a lie.
 */
export function readBootState(platform: Platform, paths: Paths, boot: string): BootState {
  const before = readRecord<BootRecord>(platform, bootPath(paths), EMBEDDED.bootRecord);
  if (before?.boot === boot) return before;
  const shutdown = readRecord<ShutdownRecord>(platform, shutdownPath(paths), EMBEDDED.shutdownRecord);
  const isOfBootBefore = shutdown !== null && (before === null || before.boot === shutdown.boot);
  return { boot, lastShutdown: isOfBootBefore ? shutdown : null };
}

/** Keeps the state of this boot, so that a restarted agent knows it too. */
export function keepBootState(platform: Platform, paths: Paths, state: BootState): void {
  const before = readRecord<BootRecord>(platform, bootPath(paths), EMBEDDED.bootRecord);
  if (before?.boot === state.boot) return;
  writeRecord(platform, bootPath(paths), state);
  removeDurably(platform, shutdownPath(paths));
}

/** Records what is installed and configured when this boot ends. */
export function recordShutdown(
  platform: Platform,
  paths: Paths,
  boot: string,
  products: readonly InstalledProduct[],
): void {
  const config = [...listConfig(platform, paths)];
  const wallTimeMs = Math.max(0, platform.clock.nowMs());
  const record: ShutdownRecord = { boot, wallTimeMs, products: [...products], config };
  writeRecord(platform, shutdownPath(paths), record);
  noteKernelTried(platform, paths, products);
}

/** Remembers that something was installed in this boot that takes effect in the next. */
export function requireReboot(platform: Platform, paths: Paths, boot: string): void {
  const record: RebootRecord = { boot };
  writeRecord(platform, rebootPath(paths), record);
}

/** Whether a reboot is due: for what was installed in this boot, for a newer kernel, or because Debian's own mark says so. */
export function isRebootRequired(
  platform: Platform,
  paths: Paths,
  boot: string,
  products: readonly InstalledProduct[],
): boolean {
  const record = readRecord<RebootRecord>(platform, rebootPath(paths), EMBEDDED.rebootRecord);
  const debianMark = `${runFolder(paths)}/reboot-required`;
  return record?.boot === boot || platform.files.stat(debianMark) !== null || isKernelDue(platform, paths, products);
}
