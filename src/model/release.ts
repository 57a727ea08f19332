// What a vendor offers: releases, their artifacts, and the typed action that installs them.
import { type Static, Type } from 'typebox';
import { ARTIFACT_BYTES_MAX, FREE_TEXT_CHARS_MAX, NAME_CHARS_MAX } from '../base/limits.ts';
import { DigestSchema } from './digest-schema.ts';
import { EcosystemSchema } from './inventory.ts';

const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });

export const KindSchema = Type.Union([Type.Literal('security'), Type.Literal('fix'), Type.Literal('enhancement')]);
/** B4: why a release exists. */
export type Kind = Static<typeof KindSchema>;

export const CompressionSchema = Type.Union([Type.Literal('none'), Type.Literal('gzip'), Type.Literal('zstd')]);
export type Compression = Static<typeof CompressionSchema>;

/** A path inside a bundle or guest that is relative, normal, and cannot climb. */
const relativePath = Type.String({
  minLength: 1,
  maxLength: 1024,
  pattern: '^(?!/)(?!.*(^|/)\\.\\.?(/|$))[^\\u0000-\\u001f\\\\]+$',
});
/** An absolute path in the guest without dot components. */
const absolutePath = Type.String({
  minLength: 2,
  maxLength: 1024,
  pattern: '^/(?!.*(^|/)\\.\\.?(/|$))[^\\u0000-\\u001f\\\\]+$',
});

export const InstallActionSchema = Type.Union([
  /**
   * Unpack the tar to `<prefix>/versions/<version>`, run its own `install` entry there (if named), swap
   * `<prefix>/current` to it atomically, run its `check` entry (if named). The previous version is kept.
   */
  Type.Object(
    {
      action: Type.Literal('bundle'),
      prefix: absolutePath,
      compression: CompressionSchema,
      install: Type.Optional(relativePath),
      check: Type.Optional(relativePath),
      timeoutMs: Type.Optional(Type.Integer({ minimum: 1000, maximum: 3_600_000 })),
      reboot: Type.Optional(Type.Boolean()),
    },
    { additionalProperties: false },
  ),
  /** One Debian package; all of a manifest's packages are given to apt together. */
  Type.Object(
    { action: Type.Literal('debian-package'), reboot: Type.Optional(Type.Boolean()) },
    { additionalProperties: false },
  ),
  /** Replace the agent's own executable and start it again. */
  Type.Object({ action: Type.Literal('agent') }, { additionalProperties: false }),
]);
export type InstallAction = Static<typeof InstallActionSchema>;

export const ArtifactSchema = Type.Object(
  {
    /** File name, no folder. */
    name: Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX, pattern: '^[^/\\u0000-\\u001f]+$' }),
    digest: DigestSchema,
    sizeBytes: Type.Integer({ minimum: 0, maximum: ARTIFACT_BYTES_MAX }),
    /** Where the vendor keeps it: a path the vendor's own code resolves against its mirrors. Never a credential. */
    location: Type.String({ minLength: 1, maxLength: 2048 }),
  },
  { additionalProperties: false },
);
export type Artifact = Static<typeof ArtifactSchema>;

export const ReleaseSchema = Type.Object(
  {
    vendor: name,
    ecosystem: EcosystemSchema,
    product: name,
    version: name,
    arch: Type.Optional(name),
    kind: KindSchema,
    requires: Type.Array(Type.Object({ product: name, range: name }, { additionalProperties: false }), {
      maxItems: 100,
    }),
    advisories: Type.Array(name, { maxItems: 200 }),
    summary: Type.Optional(Type.String({ maxLength: FREE_TEXT_CHARS_MAX })),
    license: Type.Optional(name),
    artifact: ArtifactSchema,
    install: InstallActionSchema,
  },
  { additionalProperties: false },
);
export type Release = Static<typeof ReleaseSchema>;

/** A newer version that is not installed, and why: what it needs is not on offer, or the operator holds the product. */
export const LeftOutSchema = Type.Object(
  {
    vendor: name,
    ecosystem: EcosystemSchema,
    product: name,
    version: name,
    arch: Type.Optional(name),
    kind: KindSchema,
    /** `unsatisfiable`: its relations cannot be met; `held`: by policy or in the guest; `failed-before`: rolled back on this VM. */
    why: Type.Union([Type.Literal('unsatisfiable'), Type.Literal('held'), Type.Literal('failed-before')]),
    /** One sentence for people. */
    reason: Type.String({ maxLength: FREE_TEXT_CHARS_MAX }),
  },
  { additionalProperties: false },
);
export type LeftOut = Static<typeof LeftOutSchema>;
