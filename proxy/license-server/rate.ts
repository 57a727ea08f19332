// How often somebody may ask: a bucket for each token, and for each address that comes with tokens nobody knows.

import { LICENSE_SERVER_BUCKETS_MAX, LICENSE_SERVER_BURST_SECONDS } from '../../src/base/limits.ts';
import { makeBucket } from '../../src/guest/bucket.ts';

export type Rate = {
  /** Whether this one may ask once more now. */
  readonly mayAsk: (who: string) => boolean;
};

export type RateOptions = { readonly perSecond: number; readonly monotonicMs: () => number };

/** Buckets by name; of too many names the one that asked least recently is forgotten. */
export function makeRate({ perSecond, monotonicMs }: RateOptions): Rate {
  const buckets = new Map<string, ReturnType<typeof makeBucket>>();
  const options = { capacity: perSecond * LICENSE_SERVER_BURST_SECONDS, refillPerSecond: perSecond, monotonicMs };
  return {
    mayAsk: (who) => {
      const bucket = buckets.get(who) ?? makeBucket(options);
      buckets.delete(who);
      buckets.set(who, bucket);
      const [oldest] = buckets.keys();
      if (buckets.size > LICENSE_SERVER_BUCKETS_MAX && oldest !== undefined) buckets.delete(oldest);
      return bucket.take(1);
    },
  };
}
