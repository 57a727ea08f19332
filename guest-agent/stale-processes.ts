// Who still runs what was replaced on disk: services to be restarted, and what only a reboot makes new (needrestart does the same).
import { PROCESS_MAPS_BYTES_MAX, PROCESSES_LOOKED_AT_MAX } from '../src/base/limits.ts';
import { readText } from './durable.ts';
import type { Paths } from './paths.ts';
import type { Platform } from './platform/platform.ts';

export type StaleProcesses = {
  /** systemd units that run replaced programs or libraries. */
  readonly units: readonly string[];
  /** Names of processes that no unit restarts: init, the message bus, daemons without a unit. */
  readonly rebootFor: readonly string[];
};

/** Everything talks over the bus: systemd's own advice is not to restart it. */
const ONLY_BY_REBOOT = /^dbus(-broker)?\.service$/;
/** Logins keep what they have until they end. */
const LOGINS = /^(getty|serial-getty|console-getty|container-getty)(@.*)?\.service$/;
const OWN_UNIT = 'pratique-agent.service';

/** Looks at every process but our own. Processes that end meanwhile are no matter. */
export function findStaleProcesses(platform: Platform, paths: Paths): StaleProcesses {
  const units = new Set<string>();
  const rebootFor = new Set<string>();
  const ids = platform.files.list(paths.proc).filter((name) => /^\d+$/.test(name));
  for (const id of ids.slice(0, PROCESSES_LOOKED_AT_MAX)) {
    const folder = `${paths.proc}/${id}`;
    if (!isStale(platform, folder)) continue;
    const unit = unitOf(platform, folder);
    if (unit === 'login' || unit === OWN_UNIT || isSelf(platform, folder)) continue;
    if (id === '1' || unit === null || ONLY_BY_REBOOT.test(unit)) rebootFor.add(nameOf(platform, folder));
    else units.add(unit);
  }
  return { units: [...units].sort(), rebootFor: [...rebootFor].sort() };
}

/** proc(5): the mapped files; one that dpkg has replaced since is marked as deleted. */
function isStale(platform: Platform, folder: string): boolean {
  const maps = read(platform, `${folder}/maps`);
  return /^\S+ ..x\S* .* \/(usr|lib|lib64|bin|sbin)\/.* \(deleted\)$/m.test(maps);
}

/** The unit of a process by its control group; `login` for what belongs to somebody's session; null without a unit. */
function unitOf(platform: Platform, folder: string): string | null {
  const group = /^(?:0:|\d+:name=systemd):(.*)$/m.exec(read(platform, `${folder}/cgroup`))?.[1] ?? '';
  if (group.startsWith('/user.slice/')) return 'login';
  const unit = /\/([^/]+\.service)(?:\/|$)/.exec(group)?.[1];
  if (unit === undefined) return null;
  return LOGINS.test(unit) ? 'login' : unit;
}

function isSelf(platform: Platform, folder: string): boolean {
  const program = platform.files.readLink(`${folder}/exe`) ?? '';
  return program.replace(/ \(deleted\)$/, '') === platform.selfPath;
}

function nameOf(platform: Platform, folder: string): string {
  return read(platform, `${folder}/comm`).trim() || folder;
}

function read(platform: Platform, path: string): string {
  try {
    return readText(platform, path, PROCESS_MAPS_BYTES_MAX) ?? '';
  } catch {
    return ''; // It has ended, or maps more than anything we know.
  }
}
