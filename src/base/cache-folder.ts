// Where things are kept that can be made again: built agents, guest images, fetched packages.
import { homedir } from 'node:os';
import { join } from 'node:path';

/**
 * `PRATIQUE_CACHE`, else `pratique` in the XDG cache folder; for root /var/cache, because each QEMU runs under a user of its own,
 * which cannot look into root's home.
 */
export function defaultCacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  if (env.PRATIQUE_CACHE) return env.PRATIQUE_CACHE;
  if (env.XDG_CACHE_HOME) return join(env.XDG_CACHE_HOME, 'pratique');
  return process.getuid?.() === 0 ? '/var/cache/pratique' : join(homedir(), '.cache/pratique');
}
