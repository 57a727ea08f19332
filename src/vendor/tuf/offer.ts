// One target of a TUF repository as a release: the vendor's `custom` description is hostile until this file has read it.
import type { TargetFile } from '@tufjs/models';
import { parse as parseSemver, validRange } from 'semver';
import { type Static, Type } from 'typebox';
import { isDigest } from '../../base/digest-text.ts';
import { ARTIFACT_BYTES_MAX, FREE_TEXT_CHARS_MAX, NAME_CHARS_MAX } from '../../base/limits.ts';
import { makeParser } from '../../base/parse.ts';
import { printable } from '../../base/printable.ts';
import { InstallActionSchema, KindSchema, type Release } from '../../model/release.ts';
import { VendorError } from '../errors.ts';

const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX, pattern: '^[^\\u0000-\\u001f\\u007f]+$' });
/** A product's name is part of paths on the drive and in the guest. */
const productName = Type.String({ maxLength: 128, pattern: '^[A-Za-z0-9][A-Za-z0-9._+-]*$' });

/** contracts.md, "Vendor bundles". Unknown fields are let through: a newer vendor may say more. */
export const CustomSchema = Type.Object({
  product: productName,
  version: name,
  kind: KindSchema,
  /** ID of os-release, one or several; absent: any. */
  os: Type.Optional(Type.Union([name, Type.Array(name, { minItems: 1, maxItems: 50 })])),
  /** Debian's word for the architecture; absent: any. */
  arch: Type.Optional(name),
  requires: Type.Optional(Type.Array(Type.Object({ product: productName, range: name }), { maxItems: 100 })),
  advisories: Type.Optional(Type.Array(name, { maxItems: 200 })),
  summary: Type.Optional(Type.String({ maxLength: FREE_TEXT_CHARS_MAX })),
  license: Type.Optional(name),
  install: InstallActionSchema,
});
export type Custom = Static<typeof CustomSchema>;

const parseCustom = makeParser(CustomSchema, 'vendor-ill/tuf-target');

/** A release and the systems it is for. */
export type Offer = { readonly release: Release; readonly os: readonly string[] | null };

/** Whether the text is a semantic version as semver.org writes it: no `v` before it, no spaces. */
export function isVersion(text: string): boolean {
  const version = parseSemver(text);
  return version !== null && /^[0-9]/.test(text) && text === text.trim();
}

export type OfferTerms = {
  /** TUF 6.2: the file's name carries its hash. */
  readonly isConsistent: boolean;
  /** The role that vouches for the target: `targets`, or a delegated one, which speaks for its own products only. */
  readonly role: string;
};

/** Reads one verified target. Throws VendorError or PratiqueError `vendor-ill/tuf-target` naming the target and the field. */
export function readOffer(vendor: string, target: TargetFile, { isConsistent, role }: OfferTerms): Offer {
  const what = `target "${printable(target.path)}"${role === 'targets' ? '' : ` of ${printable(role)}`}`;
  const custom = parseCustom(target.unrecognizedFields.custom, what);
  checkMeaning(custom, what);
  const digest = target.hashes.sha256;
  if (digest === undefined || !isDigest(digest)) throw unfit(what, 'hashes.sha256 is missing or no digest');
  if (!Number.isInteger(target.length) || target.length > ARTIFACT_BYTES_MAX) {
    throw unfit(what, `length is not a whole number of at most ${ARTIFACT_BYTES_MAX}`);
  }
  const components = target.path.split('/');
  const base = components.at(-1) ?? '';
  if (!components.every(isPlainComponent)) throw unfit(what, 'its path is not a plain relative one');
  if (role !== 'targets') checkDelegated(custom, components, what);
  // TUF 5.7.3 and 6.2: with consistent snapshots the file's name carries its hash.
  const fileName = isConsistent ? `${digest}.${base}` : base;
  const release: Release = {
    vendor,
    ecosystem: custom.install.action === 'agent' ? 'agent' : 'bundle',
    product: custom.product,
    version: custom.version,
    ...(custom.arch === undefined ? {} : { arch: custom.arch }),
    kind: custom.kind,
    requires: (custom.requires ?? []).map(({ product, range }) => ({ product, range })),
    advisories: custom.advisories ?? [],
    ...(custom.summary === undefined ? {} : { summary: custom.summary }),
    ...(custom.license === undefined ? {} : { license: custom.license }),
    artifact: {
      name: base,
      digest,
      sizeBytes: target.length,
      location: [...components.slice(0, -1), fileName].join('/'),
    },
    install: custom.install,
  };
  const os = custom.os === undefined ? null : typeof custom.os === 'string' ? [custom.os] : custom.os;
  return { release, os };
}

/** What a schema cannot say: versions, ranges, and which actions a bundle may carry. */
export function checkMeaning(custom: Custom, what: string): void {
  if (!isVersion(custom.version)) throw unfit(what, `version "${printable(custom.version)}" is not a semantic version`);
  for (const { range } of custom.requires ?? []) {
    if (validRange(range) === null) throw unfit(what, `requires.range "${printable(range)}" is not a semver range`);
  }
  if (custom.install.action === 'debian-package') {
    throw unfit(what, 'install.action "debian-package" belongs to a Debian source, not to a bundle');
  }
}

/**
 * A delegation names paths, a release names a product. They are held together here: in a delegated role a target lies in
 * the folder of its product, so who may sign `hello/…` speaks for hello and for nothing else, and never for the agent,
 * which is offered to every VM.
 */
function checkDelegated(custom: Custom, components: readonly string[], what: string): void {
  if (components.length < 2 || components[0] !== custom.product) {
    throw unfit(
      what,
      `product "${custom.product}" is not the folder it lies in; a delegated role speaks for its own products`,
    );
  }
  if (custom.install.action === 'agent')
    throw unfit(what, 'install.action "agent" is for the top-level targets role alone');
}

function unfit(what: string, problem: string): VendorError {
  return new VendorError('vendor-ill/tuf-target', `${what}: ${problem}`);
}

function isPlainComponent(part: string): boolean {
  return /^[^\p{Cc}\\/]{1,180}$/u.test(part) && part !== '.' && part !== '..';
}
