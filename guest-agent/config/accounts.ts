// Users and groups of this guest, as its own files have them.
import { AGENT_ACCOUNTS_BYTES_MAX } from '../../src/base/limits.ts';
import { readText } from '../durable.ts';
import type { Paths } from '../paths.ts';
import { AgentError, type Platform } from '../platform/platform.ts';

export type Account = { readonly uid: number; readonly gid: number; readonly home: string };

/** A user by name (passwd(5)). Throws AgentError `no-user`. */
export function findUser(platform: Platform, paths: Paths, name: string): Account {
  const row = rowOf(platform, `${paths.etc}/passwd`, name);
  const [uid, gid] = [Number(row?.[2]), Number(row?.[3])];
  if (row !== null && Number.isInteger(uid) && Number.isInteger(gid)) return { uid, gid, home: row[5] ?? '' };
  if (name === 'root') return { uid: 0, gid: 0, home: '/root' };
  throw new AgentError('no-user', `this guest has no user ${name}`);
}

/** A group's number by its name (group(5)). Throws AgentError `no-group`. */
export function findGroup(platform: Platform, paths: Paths, name: string): number {
  const gid = Number(rowOf(platform, `${paths.etc}/group`, name)?.[2]);
  if (Number.isInteger(gid)) return gid;
  throw new AgentError('no-group', `this guest has no group ${name}`);
}

function rowOf(platform: Platform, path: string, name: string): readonly string[] | null {
  const text = readText(platform, path, AGENT_ACCOUNTS_BYTES_MAX) ?? '';
  const line = text.split('\n').find((each) => each.startsWith(`${name}:`));
  return line?.split(':') ?? null;
}
