// Lets a bounded number of works run at once; the others wait in the order in which they came.

export type Slots = {
  /** Runs the work when a slot is free; rejects with the signal's reason when aborted while waiting. */
  readonly withSlot: <T>(signal: AbortSignal, work: () => Promise<T>) => Promise<T>;
  readonly busy: () => number;
  readonly waiting: () => number;
};

/** Makes `count` slots. */
export function makeSlots(count: number): Slots {
  let busy = 0;
  const queue: Array<() => void> = [];

  const take = async (signal: AbortSignal): Promise<void> => {
    signal.throwIfAborted();
    if (busy < count) {
      busy += 1;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const leave = (): void => {
        queue.splice(queue.indexOf(enter), 1);
        reject(signal.reason);
      };
      const enter = (): void => {
        signal.removeEventListener('abort', leave);
        resolve();
      };
      signal.addEventListener('abort', leave, { once: true });
      queue.push(enter);
    });
  };

  // The slot passes straight to the next in the queue, so that nobody who comes in between can overtake.
  const give = (): void => {
    const next = queue.shift();
    if (next === undefined) busy -= 1;
    else next();
  };

  return {
    withSlot: async (signal, work) => {
      await take(signal);
      try {
        return await work();
      } finally {
        give();
      }
    },
    busy: () => busy,
    waiting: () => queue.length,
  };
}
