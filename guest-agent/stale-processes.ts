// Who still runs what was replaced on disk: services to be restarted, and what only a reboot makes new (needrestart does the same).
import { PROCESS_MAPS_BYTES_MAX, PROCESSES_LOOKED_AT_MAX } from '../src/base/limits.ts';
import { readText } from './durable.ts';
import type { Paths } from './paths.ts';
import type { Platform } from './platform/platform.ts';

export type StaleProcesses = {
  /** systemd units that run replaced programs or libraries. */
  readonly units: readonly string[];
  /** Whether process 1 is among them; systemd can be told to begin anew without a reboot. */
  readonly isInitStale: boolean;
  /** Names of processes that nothing but a reboot renews: the message bus, daemons without a unit. */
  readonly rebootFor: readonly string[];
};

/**
 * Everything talks over the bus: systemd's own advice is not to restart it. It is reached from inside only, so a library that it
 * merely links does not take a reboot; its own program and the C library do.
 */
const ONLY_BY_REBOOT = /^dbus(-broker)?\.service$/;
/** Logins keep what they have until they end. */
const LOGINS = /^(getty|serial-getty|console-getty|container-getty)(@.*)?\.service$/;
const OWN_UNIT = 'pratique-agent.service';

/** Looks at every process but our own. Processes that end meanwhile are no matter. */
export function findStaleProcesses(platform: Platform, paths: Paths): StaleProcesses {
  const units = new Set<string>();
  const rebootFor = new Set<string>();
  let isInitStale = false;
  const ids = platform.files.list(paths.proc).filter((name) => /^\d+$/.test(name));
  for (const id of ids.slice(0, PROCESSES_LOOKED_AT_MAX)) {
    const folder = `${paths.proc}/${id}`;
    const replaced = replacedFiles(platform, folder);
    if (replaced.length === 0) continue;
    const unit = unitOf(platform, folder);
    if (unit === 'login' || unit === OWN_UNIT || isSelf(platform, folder)) continue;
    if (id === '1') isInitStale = true;
    else if (unit === null) rebootFor.add(nameOf(platform, folder));
    else if (!ONLY_BY_REBOOT.test(unit)) units.add(unit);
    else if (replaced.some((file) => /\/(dbus-[a-z-]+|libc\.so\.6)$/.test(file)))
      rebootFor.add(nameOf(platform, folder));
  }
  return { units: [...units].sort(), isInitStale, rebootFor: [...rebootFor].sort() };
}

/** proc(5): the programs and libraries that are mapped; one that dpkg has replaced since is marked as deleted. */
function replacedFiles(platform: Platform, folder: string): readonly string[] {
  const maps = read(platform, `${folder}/maps`);
  const found = maps.matchAll(/^\S+ ..x\S* .* (\/(?:usr|lib|lib64|bin|sbin)\/.*) \(deleted\)$/gm);
  return [...found].map(([, file = '']) => file);
}

/** Whether process 1 still runs what was replaced. */
export function isInitStale(platform: Platform, paths: Paths): boolean {
  return replacedFiles(platform, `${paths.proc}/1`).length > 0;
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
