// Reads /var/lib/dpkg/status in pieces: the file may be megabytes, the agent is small.
import { DPKG_STATUS_BYTES_MAX, INVENTORY_PRODUCTS_MAX } from '../src/base/limits.ts';
import { makeDpkgStatusReader } from '../src/model/dpkg-status.ts';
import type { InstalledProduct } from '../src/model/inventory.ts';
import { AgentError, type Platform } from './platform/platform.ts';

/** Small, because text, its split form and the packages in it are in memory together. */
const PIECE_BYTES = 16_384;
const NEWLINE = 10;

/** The packages of a status file; empty if there is none. */
export function readDpkgStatus(platform: Platform, path: string): readonly InstalledProduct[] {
  if (platform.files.stat(path) === null) return [];
  const products: InstalledProduct[] = [];
  const reader = makeDpkgStatusReader();
  const add = (packages: readonly InstalledProduct[]): void => {
    products.push(...packages);
    if (products.length > INVENTORY_PRODUCTS_MAX) throw new AgentError('too-large', `${path} names too many packages`);
  };
  eachPiece(platform, path, (text) => {
    const { packages, overflow } = reader.push(text);
    add(packages);
    if (overflow) throw new AgentError('too-large', `${path} has an endless stanza`);
  });
  add(reader.end());
  return products;
}

/** Bytes that each installed package takes by its own word (deb-control: Installed-Size); of several architectures the smallest. */
export function readInstalledSizes(platform: Platform, path: string): ReadonlyMap<string, number> {
  const sizes = new Map<string, number>();
  if (platform.files.stat(path) === null) return sizes;
  let product = '';
  eachPiece(platform, path, (text) => {
    for (const [, field, value = ''] of text.matchAll(/^(Package|Installed-Size): (.*)$/gm)) {
      if (field === 'Package') product = value;
      else sizes.set(product, Math.min(Number(value) * 1024 || 0, sizes.get(product) ?? Number.POSITIVE_INFINITY));
    }
  });
  return sizes;
}

/** Text of a file in pieces that end at a line's end, so that no character is cut. */
function eachPiece(platform: Platform, path: string, use: (text: string) => void): void {
  const file = platform.files.open(path);
  try {
    const buffer = new Uint8Array(PIECE_BYTES);
    let kept = 0;
    let total = 0;
    for (let count = file.read(buffer); count > 0; count = file.read(buffer.subarray(kept))) {
      total += count;
      if (total > DPKG_STATUS_BYTES_MAX) throw new AgentError('too-large', `${path} is over its limit`);
      const filled = kept + count;
      const newline = buffer.lastIndexOf(NEWLINE, filled - 1);
      const end = newline < 0 && filled === buffer.length ? filled : newline + 1;
      use(platform.decode(buffer.subarray(0, end)));
      buffer.copyWithin(0, end, filled);
      kept = filled - end;
    }
    use(platform.decode(buffer.subarray(0, kept)));
  } finally {
    file.close();
  }
}
