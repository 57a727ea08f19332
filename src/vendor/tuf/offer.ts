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

/** Reads one verified target. Throws VendorError or PratiqueError `vendor-ill/tuf-target` naming the target and the field. */
export function readOffer(vendor: string, target: TargetFile, isConsistent: boolean): Offer {
  const what = `target "${printable(target.path)}"`;
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

function unfit(what: string, problem: string): VendorError {
  return new VendorError('vendor-ill/tuf-target', `${what}: ${problem}`);
}

function isPlainComponent(part: string): boolean {
  return /^[^\p{Cc}\\/]{1,180}$/u.test(part) && part !== '.' && part !== '..';
}
