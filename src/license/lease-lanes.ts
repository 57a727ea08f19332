// One piece of work after another for each key; different keys do not wait for each other.

export type Lanes = { readonly run: <T>(key: string, work: () => Promise<T>) => Promise<T> };

/** Lanes that are forgotten when nobody is in them. */
export function makeLanes(): Lanes {
  const last = new Map<string, Promise<unknown>>();
  return {
    run: (key, work) => {
      const mine = (last.get(key) ?? Promise.resolve()).then(work, work);
      const settled = mine.then(
        () => {},
        () => {},
      );
      last.set(key, settled);
      void settled.then(() => {
        if (last.get(key) === settled) last.delete(key);
      });
      return mine;
    },
  };
}
