// A lock between processes that ends with its holder: flock(1) keeps it, and ends when our end of its pipe closes.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { ImageError } from './image-error.ts';

/** Runs the work while no other process holds the same lock file; waits for its turn. Throws what the work throws. */
export async function withFileLock<T>(path: string, work: () => Promise<T>): Promise<T> {
  const holder = spawn('flock', [path, 'sh', '-c', 'echo held; exec cat'], { stdio: ['pipe', 'pipe', 'inherit'] });
  const ended = once(holder, 'exit');
  try {
    const held = await Promise.race([once(holder.stdout, 'data').then(() => true), ended.then(() => false)]);
    if (!held) throw new ImageError('host-fault/lock', `the lock ${path} could not be taken`);
    return await work();
  } finally {
    holder.stdin.end();
    await ended;
  }
}
