// A token bucket: how much of something a guest may do at once, and how fast it is forgiven.

export type Bucket = {
  /** Takes `amount`; false when that is more than is left (then nothing is taken). */
  readonly take: (amount: number) => boolean;
};

export type BucketOptions = {
  /** Most that may be taken at once. */
  readonly capacity: number;
  readonly refillPerSecond: number;
  readonly monotonicMs: () => number;
};

/** A full bucket. */
export function makeBucket(options: BucketOptions): Bucket {
  let level = options.capacity;
  let filledAtMs = options.monotonicMs();
  return {
    take: (amount) => {
      const nowMs = options.monotonicMs();
      level = Math.min(options.capacity, level + ((nowMs - filledAtMs) / 1000) * options.refillPerSecond);
      filledAtMs = nowMs;
      if (amount > level) return false;
      level -= amount;
      return true;
    },
  };
}
