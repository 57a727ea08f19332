// Root's view of files without being root: a user namespace in which the caller counts as root, for owners in archives and images.

/** Words to put before a command that must see itself as root; none for root. */
export function asRootPrefix(): readonly string[] {
  return process.getuid?.() === 0 ? [] : ['unshare', '--map-root-user', '--map-auto'];
}
