// Root's view of files without being root: a user namespace in which the caller counts as root, for owners in archives and images.

/**
 * Words to put before a command that must see itself as root; none for root. `one`: all files are the caller's. `all`: files of many
 * owners, which takes the ids that /etc/subuid gives the caller.
 */
export function asRootPrefix(owners: 'one' | 'all'): readonly string[] {
  if (process.getuid?.() === 0) return [];
  return owners === 'one' ? ['unshare', '--map-root-user'] : ['unshare', '--map-root-user', '--map-auto'];
}
