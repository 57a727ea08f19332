// Where things are in the guest. Tests put all of it under a folder of their own.

export type Paths = {
  /** Durable state of the agent. */
  readonly state: string;
  /** What may be forgotten at the next boot. */
  readonly runtime: string;
  readonly proc: string;
  readonly sys: string;
  readonly dev: string;
  readonly etc: string;
  readonly dpkg: string;
  /** Whose free space counts. */
  readonly installRoot: string;
  /** A folder that stands for the mounted drive (containers, tests); null: the drive is found and mounted. */
  readonly driveFolder: string | null;
  /** Folders searched for programs: init may start the agent without PATH. */
  readonly programs: readonly string[];
  /** Debian's policy of what a package may start, invoke-rc.d(8). */
  readonly policy: string;
};

export const GUEST_PATHS: Paths = {
  state: '/var/lib/pratique',
  runtime: '/run/pratique',
  proc: '/proc',
  sys: '/sys',
  dev: '/dev',
  etc: '/etc',
  dpkg: '/var/lib/dpkg',
  installRoot: '/',
  driveFolder: null,
  programs: ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'],
  policy: '/usr/sbin/policy-rc.d',
};

/** /run, of which the agent's own folder is a part. */
export function runFolder(paths: Paths): string {
  return paths.runtime.slice(0, paths.runtime.lastIndexOf('/'));
}

/** A path of the guest's own system. */
export function inRoot(paths: Paths, path: string): string {
  return paths.installRoot === '/' ? path : `${paths.installRoot}${path}`;
}
