// Gathers what comes in the same moment, so that a burst costs one write instead of many.

/** Turns of the event loop that are waited at most while more keeps coming. */
const TURNS_MAX = 4;

/**
 * Returns a function to call after each arrival. `flush` runs in the next turn of the event loop for a lone arrival; when more
 * came meanwhile, it waits until a turn brings none, at the latest until TURNS_MAX turns after the first.
 */
export function makeGathering(flush: () => void): () => void {
  let isScheduled = false;
  let arrivals = 0;
  const wait = (seen: number, turnsLeft: number): void => {
    setImmediate(() => {
      if (arrivals > seen && turnsLeft > 1) return wait(arrivals, turnsLeft - 1);
      isScheduled = false;
      arrivals = 0;
      flush();
    });
  };
  return () => {
    arrivals += 1;
    if (isScheduled) return;
    isScheduled = true;
    wait(arrivals, TURNS_MAX);
  };
}
