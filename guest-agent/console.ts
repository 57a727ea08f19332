// Tells whoever is in the guest how it stands: a state file for scripts, the log, and the console.
import { makeFolders, readText } from './durable.ts';
import type { Paths } from './paths.ts';
import type { Platform } from './platform/platform.ts';

export type Announcement = {
  readonly word: 'waiting' | 'admitted' | 'hold';
  readonly boot: string;
  /** Further lines. */
  readonly text: readonly string[];
};

const STATE_BYTES_MAX = 16_384;

/** Writes `<runtime>/state`: the word and the boot id on the first line, then the text; and says it in the log. */
export function announce(platform: Platform, paths: Paths, announcement: Announcement): void {
  const { word, boot, text } = announcement;
  if (word === 'hold') platform.log(`this machine stays unplugged: ${text.join(': ')}`);
  if (word === 'admitted') platform.log('the host has admitted this machine to the network');
  const { files } = platform;
  const path = `${paths.runtime}/state`;
  makeFolders(platform, paths.runtime);
  const file = files.create(`${path}.new`, 0o644);
  try {
    file.write(platform.encode(`${[`${word} ${boot}`, ...text].join('\n')}\n`));
  } finally {
    file.close();
  }
  files.rename(`${path}.new`, path);
}

/** Whether this boot was admitted before this agent started. */
export function isAdmittedBefore(platform: Platform, paths: Paths, boot: string): boolean {
  const text = readText(platform, `${paths.runtime}/state`, STATE_BYTES_MAX) ?? '';
  return text.split('\n', 1)[0] === `admitted ${boot}`;
}

/** What an earlier boot was told says nothing about this one. */
export function clearOldAnnouncement(platform: Platform, paths: Paths, boot: string): void {
  const before = readText(platform, `${paths.runtime}/state`, STATE_BYTES_MAX);
  if (before?.split('\n', 1)[0]?.endsWith(` ${boot}`) === true) return;
  announce(platform, paths, { word: 'waiting', boot, text: [] });
}
