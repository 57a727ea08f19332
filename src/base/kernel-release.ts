// Names of Debian's kernels: which package a running kernel is from, and whether two are of one kind.

const IMAGE = 'linux-image-';

/** The kernel release (`uname -r`) that a package holds; null for other packages, also for those that only point at the newest kernel. */
export function kernelReleaseOf(product: string): string | null {
  const release = product.startsWith(IMAGE) ? product.slice(IMAGE.length) : '';
  return /^\d/.test(release) && !/-(dbg|unsigned)$/.test(release) ? release : null;
}

/** The package that holds a kernel release. */
export function kernelPackageOf(release: string): string {
  return `${IMAGE}${release}`;
}

/** What kind of kernel a release is: `amd64`, `cloud-amd64`, `rt-amd64`. A boot loader does not go from one kind to another by itself. */
export function kernelFlavourOf(release: string): string {
  return /-((?:[a-z][a-z0-9]*-)*[a-z][a-z0-9]*)$/.exec(release)?.[1] ?? '';
}

/** Orders two releases of one kind: numbers by value, the rest as text. Negative, zero, positive. */
export function compareKernelReleases(a: string, b: string): number {
  const [left, right] = [partsOf(a), partsOf(b)];
  for (let index = 0; index < Math.max(left.length, right.length); index += 1) {
    const difference = comparePart(left[index] ?? '', right[index] ?? '');
    if (difference !== 0) return difference;
  }
  return 0;
}

function partsOf(release: string): readonly string[] {
  return release.match(/\d+|\D+/g) ?? [];
}

function comparePart(a: string, b: string): number {
  const areNumbers = /^\d+$/.test(a) && /^\d+$/.test(b);
  if (areNumbers) return Number(a) - Number(b);
  if (a === b) return 0;
  return a < b ? -1 : 1;
}
