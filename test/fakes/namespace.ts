// A network namespace for one test, with a process of ours that holds it; an ordinary user gets one in a user namespace.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readlink } from 'node:fs/promises';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { enterPrefix } from '../../src/hypervisor/namespace.ts';
import type { Namespace } from '../../src/hypervisor/vm-spec.ts';

export type TestNamespace = {
  readonly namespace: Namespace;
  /** Runs a command inside; it must succeed. */
  readonly run: (...argv: string[]) => Promise<string>;
  /** Runs `ip -batch` with these lines inside. */
  readonly ip: (...lines: string[]) => Promise<string>;
  readonly close: () => Promise<void>;
};

/**
 * Makes a namespace; it is gone when its holder is, at the latest with this process. A neighbour shares the user namespace of
 * the one it is a neighbour of, so that a cable can be laid between them.
 */
export async function makeNamespace(options: { readonly neighbourOf?: TestNamespace } = {}): Promise<TestNamespace> {
  const isRoot = process.getuid?.() === 0;
  const beside = options.neighbourOf?.namespace ?? null;
  // The holder reads our end of a pipe, so it ends with us.
  const unshare = ['unshare', isRoot || beside !== null ? '-n' : '-Urn', 'cat'];
  const [program = '', ...args] = [...(beside === null ? [] : enterPrefix(beside)), ...unshare];
  const holder = spawn(program, args, { stdio: ['pipe', 'ignore', 'inherit'] });
  const { pid } = holder;
  // A test that fails before it closes the namespace must not hang for it.
  holder.unref();
  if ('unref' in holder.stdin && typeof holder.stdin.unref === 'function') holder.stdin.unref();
  if (pid === undefined) throw new Error('unshare could not be started');
  const others = [await readlink('/proc/self/ns/net')];
  if (beside?.kind === 'process') others.push(await readlink(`/proc/${beside.pid}/ns/net`));
  for (let tries = 0; others.includes(await readlink(`/proc/${pid}/ns/net`)); tries += 1) {
    if (tries > 500) throw new Error('unshare made no network namespace');
    await systemClock.sleep(10);
  }
  const namespace: Namespace = { kind: 'process', pid, withUser: !isRoot };
  const enter = enterPrefix(namespace);
  return {
    namespace,
    run: (...argv) => runCommand([...enter, ...argv]),
    ip: (...lines) => runCommand([...enter, 'ip', '-batch', '-'], { input: `${lines.join('\n')}\n` }),
    close: async () => {
      holder.ref();
      const ended = once(holder, 'exit');
      holder.stdin.end();
      await ended;
    },
  };
}
