// Waiting for what nobody announces.
import type { Clock } from './clock.ts';

/** Waits until the condition holds, looking every `everyMs`; false when it did not within `timeoutMs`. */
export async function waitUntil(
  isDone: () => Promise<boolean>,
  clock: Clock,
  timeoutMs: number,
  everyMs = 20,
): Promise<boolean> {
  const deadlineMs = clock.monotonicMs() + timeoutMs;
  for (;;) {
    if (await isDone()) return true;
    if (clock.monotonicMs() >= deadlineMs) return false;
    await clock.sleep(everyMs);
  }
}
