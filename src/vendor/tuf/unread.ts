// Releases of a TUF repository that this host cannot read, as far as it can tell what they are: a VM behind one is not up to date.
import type { TargetFile } from '@tufjs/models';
import { type Static, Type } from 'typebox';
import { NAME_CHARS_MAX } from '../../base/limits.ts';
import { makeParser } from '../../base/parse.ts';
import { printable } from '../../base/printable.ts';
import type { Inventory } from '../../model/inventory.ts';
import { type LeftOut, LeftOutSchema, type Release } from '../../model/release.ts';
import { isVersion } from './offer.ts';
import { compareSemver, isNewerVersion, isPreview } from './order.ts';

const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });
const NamedSchema = Type.Object({
  product: name,
  version: name,
  kind: Type.Optional(Type.Unknown()),
  os: Type.Optional(Type.Unknown()),
  arch: Type.Optional(Type.Unknown()),
});
type Named = Static<typeof NamedSchema>;

const parseNamed = makeParser(NamedSchema, 'vendor-ill/tuf-target');
const parseKind = makeParser(LeftOutSchema.properties.kind, 'vendor-ill/tuf-target');

/** A release that could not be read, and why. */
export type Unread = Named & { readonly reason: string };

/** What a target that could not be read is about; null where it does not say. A delegated role speaks for its own products only. */
export function nameUnread({ path, unrecognizedFields }: TargetFile, role: string, reason: string): Unread | null {
  try {
    const named = parseNamed(unrecognizedFields.custom, 'a target');
    const isItsOwn = role === 'targets' || path.startsWith(`${named.product}/`);
    return isItsOwn && isVersion(named.version) ? { ...named, reason } : null;
  } catch {
    return null;
  }
}

/** The unread releases that would be newer than what a VM has and can have, one of each product. */
export function leaveOutUnread(
  vendor: string,
  unread: readonly Unread[],
  { inventory, releases }: { readonly inventory: Inventory; readonly releases: readonly Release[] },
): readonly LeftOut[] {
  const bundles = inventory.products.filter(({ ecosystem }) => ecosystem === 'bundle');
  const byProduct = new Map<string, LeftOut>();
  for (const { product, version: installed } of bundles) {
    const had = releases.find((one) => one.ecosystem === 'bundle' && one.product === product)?.version ?? installed;
    const newer = unread.filter(
      (one) =>
        one.product === product &&
        fits(one, inventory.os) &&
        (!isPreview(one.version) || isPreview(installed)) &&
        isNewerVersion(one.version, installed) &&
        isNewerVersion(one.version, had),
    );
    const [newest] = newer.toSorted((a, b) => compareSemver(b.version, a.version));
    if (newest === undefined) continue;
    const isSecurity = newer.some((one) => kindOf(one) === 'security');
    const kind = isSecurity ? 'security' : kindOf(newest);
    const reason = printable(`this host cannot read the vendor's release: ${newest.reason}`, 500);
    const entry = { vendor, ecosystem: 'bundle', product, version: newest.version } as const;
    byProduct.set(product, { ...entry, kind, why: 'unsatisfiable', reason });
  }
  return [...byProduct.values()];
}

/** Whoever does not say what it is for may mend a hole. */
function kindOf({ kind }: Named): LeftOut['kind'] {
  try {
    return parseKind(kind, 'a kind');
  } catch {
    return 'security';
  }
}

/** Only what certainly is for another system is not for this one. */
function fits({ os, arch }: Named, guest: Inventory['os']): boolean {
  if (typeof arch === 'string' && arch !== guest.arch) return false;
  if (typeof os === 'string') return os === guest.id;
  return !Array.isArray(os) || os.includes(guest.id);
}
