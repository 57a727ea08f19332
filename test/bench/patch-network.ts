// The bench's network: the demonstration's bridge in a namespace, and a process inside it that relays and asks for pages.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type DemoNetwork, makeDemoNetwork, PEER_ADDRESS } from '../../proxy/demo/demo-network.ts';
import { systemClock } from '../../src/base/clock.ts';
import { enterPrefix } from '../../src/hypervisor/namespace.ts';
import type { Namespace } from '../../src/hypervisor/vm-spec.ts';

/** The host's own address on the bridge, where guests find the relay and apt-cacher-ng. */
export const HOST_ADDRESS = PEER_ADDRESS.replace(/\/.*$/, '');
/** The device inside that has it. */
export const HOST_DEVICE = 'peer1';
/** Where guests find the relay. */
export const RELAY_PORT = 8080;
const START_TIMEOUT_MS = 30_000;

export type PatchNetwork = {
  readonly namespace: Namespace;
  /** Words to put before a command that is to run inside. */
  readonly enter: readonly string[];
  /** The page as soon as the guest gives it. Throws when the time is up or the signal says so. */
  readonly page: (
    url: string,
    options: { readonly timeoutMs: number; readonly signal: AbortSignal },
  ) => Promise<string>;
  readonly close: () => Promise<void>;
};

/** Makes bridge, peer and the process inside. */
export async function makePatchNetwork(options: {
  readonly folder: string;
  readonly relaySocket: string;
}): Promise<PatchNetwork> {
  const network = await makeDemoNetwork({ folder: options.folder, clock: systemClock, prefix: 'pqpatch' });
  try {
    return await enterNetwork(network, options.relaySocket);
  } catch (error) {
    await network.close();
    throw error;
  }
}

async function enterNetwork(network: DemoNetwork, relaySocket: string): Promise<PatchNetwork> {
  const enter = enterPrefix(network.namespace);
  const program = join(import.meta.dirname, 'patch-inside.ts');
  const [command, ...args] = [...enter, process.execPath, program, HOST_ADDRESS, String(RELAY_PORT), relaySocket];
  if (command === undefined) throw new Error('assertion failed: there is a program to run');
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const waiting = new Map<number, (text: string) => void>();
  const ready = Promise.withResolvers<void>();
  child.once('exit', () => ready.reject(new Error('the process inside the namespace ended')));
  createInterface({ input: child.stdout }).on('line', (line) => {
    if (line === 'ready') return ready.resolve();
    // The cast holds: patch-inside.ts writes these lines.
    const { id, text } = JSON.parse(line) as { readonly id: number; readonly text: string };
    waiting.get(id)?.(text);
  });
  const cancelStart = systemClock.after(START_TIMEOUT_MS, () => child.kill('SIGKILL'));
  await ready.promise.finally(cancelStart);
  let asked = 0;
  return {
    namespace: network.namespace,
    enter,
    page: async (url, { timeoutMs, signal }) => {
      asked += 1;
      const id = asked;
      const answer = Promise.withResolvers<string>();
      waiting.set(id, answer.resolve);
      const giveUp = () => answer.reject(new Error(`${url}: no answer (interrupted, or not within ${timeoutMs} ms)`));
      const cancel = systemClock.after(timeoutMs, giveUp);
      signal.addEventListener('abort', giveUp);
      child.stdin.write(`${JSON.stringify({ id, url })}\n`);
      try {
        signal.throwIfAborted();
        return await answer.promise;
      } finally {
        cancel();
        signal.removeEventListener('abort', giveUp);
        waiting.delete(id);
        child.stdin.write(`${JSON.stringify({ id, url: null })}\n`);
      }
    },
    close: async () => {
      if (child.exitCode === null && child.signalCode === null) {
        const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
        child.kill('SIGKILL');
        await ended;
      }
      await network.close();
    },
  };
}
