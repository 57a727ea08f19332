// Where a VM's network lives, and how a command is run there.
import type { Namespace } from './vm-spec.ts';

/** The argv prefix that runs a command inside the namespace. It never forks, so the command keeps the pid that was spawned (nsenter(1)). */
export function enterPrefix(namespace: Namespace): readonly string[] {
  switch (namespace.kind) {
    case 'host':
      return [];
    case 'named':
      return ['nsenter', `--net=/run/netns/${namespace.name}`];
    case 'process': {
      const target = ['nsenter', '-t', String(namespace.pid)];
      return namespace.withUser ? [...target, '--preserve-credentials', '-U', '-n'] : [...target, '-n'];
    }
    default:
      return namespace satisfies never;
  }
}

/** A text that is equal for equal namespaces: the key of per-namespace things. */
export function namespaceKey(namespace: Namespace): string {
  switch (namespace.kind) {
    case 'host':
      return 'host';
    case 'named':
      return `named:${namespace.name}`;
    case 'process':
      return `process:${namespace.pid}${namespace.withUser ? ':user' : ''}`;
    default:
      return namespace satisfies never;
  }
}

/** The namespace of a spec that names none. */
export const HOST_NAMESPACE: Namespace = { kind: 'host' };
