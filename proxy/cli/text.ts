// Durations, sizes and times as people read and write them.
import { PratiqueError } from '../../src/base/errors.ts';
import { durationMs } from '../duration.ts';

/** Milliseconds of `90s`, `10m`, `1h`. Throws `usage/duration`. */
export function parseDuration(text: string): number {
  const ms = durationMs(text);
  if (ms !== null) return ms;
  throw new PratiqueError('usage/duration', `\`${text}\` is no duration`, { next: 'write for example 90s, 10m or 1h' });
}

/** `85 ms`, `2.4 s`, `3 min 05 s`, `4 h 10 min`, `12 d`. */
export function durationText(lengthMs: number): string {
  const ms = Math.max(0, Math.round(lengthMs));
  if (ms < 1_000) return `${ms} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  const pad = (value: number): string => String(Math.floor(value)).padStart(2, '0');
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ${pad((ms % 60_000) / 1_000)} s`;
  if (ms < 2 * 86_400_000) return `${Math.floor(ms / 3_600_000)} h ${pad((ms % 3_600_000) / 60_000)} min`;
  return `${Math.floor(ms / 86_400_000)} d`;
}

/** `512 B`, `1.4 kB`, `65 MB`: powers of 1000. */
export function sizeText(sizeBytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = sizeBytes;
  let unit = 0;
  while (value >= 1_000 && unit < units.length - 1) {
    value /= 1_000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** The number given to an option. Throws `usage/command-line`. */
export function wholeNumber(option: string, text: string): number {
  if (/^\d{1,15}$/.test(text)) return Number(text);
  throw new PratiqueError('usage/command-line', `${option} takes a whole number, not \`${text}\``);
}
