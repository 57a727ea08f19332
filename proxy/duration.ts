// Durations as people write them: `90s`, `10m`, `24h`, `7d`.

const UNITS_MS: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** What a configuration file may say. */
export const DURATION_PATTERN = '^[1-9][0-9]{0,8}(s|m|h|d)$';

/** Milliseconds of a number and its unit; null for anything else. */
export function durationMs(text: string): number | null {
  const found = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text);
  const unit = UNITS_MS[found?.[2] ?? ''];
  return found === null || unit === undefined ? null : Number(found[1]) * unit;
}

/** The shortest text that means so many milliseconds: `24h`, `90m`; the inverse of durationMs. */
export function shortDuration(ms: number): string {
  const units = Object.entries(UNITS_MS).filter(([unit]) => unit !== 'd');
  const [unit, unitMs] = units.findLast(([, size]) => ms % size === 0) ?? ['ms', 1];
  return `${ms / unitMs}${unit}`;
}
