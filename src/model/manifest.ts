// /manifest.json of a drive: what the guest is to install, each file with its digest. The guest agent reads this file.
import { type Static, Type } from 'typebox';
import { ARTIFACT_BYTES_MAX, DRIVE_FILES_MAX, NAME_CHARS_MAX, PLAN_ITEMS_MAX } from '../base/limits.ts';
import { DigestSchema } from './digest-schema.ts';
import { ManifestConfigRemovedSchema, ManifestConfigsSchema } from './guest-config.ts';
import { RunIdSchema, VmIdSchema } from './ids.ts';
import { EcosystemSchema } from './inventory.ts';
import { InstallActionSchema } from './release.ts';

const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });
/** A path on the drive: `/packages/…`, `/apt/…`, `/config/…` or `/agent/…`. */
const drivePath = Type.String({
  maxLength: 1024,
  pattern: '^(?!.*/\\.\\.?(/|$))/(packages|apt|config|agent)/[^\\u0000-\\u001f\\\\]+$',
});

export const ManifestFileSchema = Type.Object(
  { path: drivePath, digest: DigestSchema, sizeBytes: Type.Integer({ minimum: 0, maximum: ARTIFACT_BYTES_MAX }) },
  { additionalProperties: false },
);

export const ManifestItemSchema = Type.Object(
  {
    id: name,
    ecosystem: EcosystemSchema,
    product: name,
    version: name,
    arch: Type.Optional(name),
    install: InstallActionSchema,
    /** The files this item needs, the artifact first. */
    files: Type.Array(ManifestFileSchema, { minItems: 1, maxItems: 1000 }),
  },
  { additionalProperties: false },
);
export type ManifestItem = Static<typeof ManifestItemSchema>;

export const MANIFEST_FORMAT = 'pratique.manifest/1';

export const ManifestSchema = Type.Object(
  {
    format: Type.Literal(MANIFEST_FORMAT),
    vm: VmIdSchema,
    run: RunIdSchema,
    planDigest: DigestSchema,
    /**
     * Absent: the Debian packages are vouched for by the digests of this manifest. Present: the guest's own apt verifies them
     * from the vendor's signed files in these folders of the drive, each holding `dists/` and `pool/`.
     */
    apt: Type.Optional(
      Type.Object(
        {
          archives: Type.Array(
            Type.Object(
              {
                folder: drivePath,
                suite: Type.String({ pattern: '^[a-z0-9][a-z0-9./-]{0,63}$' }),
                components: Type.Array(Type.String({ pattern: '^[a-z0-9][a-z0-9./-]{0,63}$' }), {
                  minItems: 1,
                  maxItems: 16,
                }),
              },
              { additionalProperties: false },
            ),
            { minItems: 1, maxItems: 16 },
          ),
        },
        { additionalProperties: false },
      ),
    ),
    /** In the order of installation. */
    items: Type.Array(ManifestItemSchema, { maxItems: PLAN_ITEMS_MAX }),
    /** Configuration, applied after the items as one set: all of it or nothing. Only agents whose inventory says that they know it get any. */
    config: Type.Optional(ManifestConfigsSchema),
    /** Applied configuration that is taken back in the same set. */
    configRemoved: Type.Optional(ManifestConfigRemovedSchema),
    /** Files that belong to no item (Debian's signed indices). */
    extraFiles: Type.Array(ManifestFileSchema, { maxItems: DRIVE_FILES_MAX }),
  },
  { additionalProperties: false },
);
export type Manifest = Static<typeof ManifestSchema>;

/** Volume label of the drive, by which the agent finds it. */
export const DRIVE_LABEL = 'PRATIQUE';
