// Finds the known word that a mistyped one resembles most.

/** The known word with the smallest edit distance; null when none is near (more than half of it would have to change). */
export function nearestWord(word: string, known: readonly string[]): string | null {
  const scored = known
    .map((candidate) => ({ candidate, distance: editDistance(word.toLowerCase(), candidate.toLowerCase()) }))
    .sort((a, b) => a.distance - b.distance);
  const best = scored[0];
  if (best === undefined) return null;
  return best.distance <= Math.ceil(Math.max(word.length, best.candidate.length) / 2) ? best.candidate : null;
}

/** Levenshtein's distance. A word longer than 64 characters is no typing mistake and is infinitely far. */
function editDistance(a: string, b: string): number {
  if (a.length > 64 || b.length > 64) return Number.POSITIVE_INFINITY;
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const substituted = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substituted, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? Number.POSITIVE_INFINITY;
}
