// What a backup says of itself: the first entry of its tar. Every other entry is named here with its digest, and nothing else is taken out.
import { type Static, Type } from 'typebox';
import { PratiqueError } from '../src/base/errors.ts';
import { BACKUP_FILES_MAX } from '../src/base/limits.ts';
import { makeParser } from '../src/base/parse.ts';
import { DigestSchema } from '../src/model/digest-schema.ts';

export class BackupError extends PratiqueError {}

export const MANIFEST_NAME = 'manifest.json';
/** Beside the data, after a restore: tells the next daemon that it may believe nothing about VMs that run. */
export const RESTORED_NAME = 'restored.json';
/** Below the restored data folder: configuration, which is compared and put back by people. */
export const RESTORED_CONFIG = 'restored-config';

const strict = { additionalProperties: false } as const;

const FileSchema = Type.Object(
  {
    path: Type.String({ maxLength: 512 }),
    sizeBytes: Type.Integer({ minimum: 0 }),
    digest: DigestSchema,
    /** Where a configuration file had been. */
    from: Type.Optional(Type.String({ maxLength: 4096 })),
  },
  strict,
);
export type BackupFile = Static<typeof FileSchema>;

export const BackupManifestSchema = Type.Object(
  {
    format: Type.Literal('pratique.backup/1'),
    /** Version of the program that made it. */
    program: Type.String({ maxLength: 64 }),
    madeAtMs: Type.Integer(),
    hasKeys: Type.Boolean({ description: 'The keys that sign the audit records are in it: it is a secret' }),
    hasBlobs: Type.Boolean(),
    /** Schema of each database, by its path below the data folder. */
    schemas: Type.Record(Type.String(), Type.Integer({ minimum: 0 })),
    files: Type.Array(FileSchema, { maxItems: BACKUP_FILES_MAX }),
    /** What the store had; without `hasBlobs` it is fetched again when it is needed. */
    blobs: Type.Array(Type.Object({ digest: DigestSchema, sizeBytes: Type.Integer({ minimum: 0 }) }, strict), {
      maxItems: BACKUP_FILES_MAX,
    }),
  },
  strict,
);
export type BackupManifest = Static<typeof BackupManifestSchema>;

/** A backup that is not whole, not ours or not to be believed; nothing was restored. */
export function damaged(what: string, cause?: unknown): BackupError {
  return new BackupError('usage/backup-damaged', `the backup is refused: ${what}`, {
    ...(cause === undefined ? {} : { cause }),
    next: 'nothing was restored; take another backup, or copy this one again from where it was kept',
  });
}

export const parseManifest = makeParser(BackupManifestSchema, 'usage/backup-damaged');

const NAME = '[A-Za-z0-9_][A-Za-z0-9._-]*';
/** The only places that a backup may fill. */
const PLACES: readonly RegExp[] = [
  /^data\/pratique\.db$/,
  /^data\/trust-time\.json$/,
  /^data\/store\/catalog\.sqlite$/,
  /^data\/store\/blobs\/([0-9a-f]{2})\/\1[0-9a-f]{62}$/,
  new RegExp(`^data/audit/${NAME}$`),
  new RegExp(`^data/vendors/[a-z0-9][a-z0-9._-]*/${NAME}$`),
  new RegExp(`^config/${NAME}$`),
];

/** Checks what the schema cannot: places, a blob's name against its digest, nothing twice. Throws BackupError. */
export function checkManifest({ files }: BackupManifest): void {
  const seen = new Set<string>();
  for (const { path, digest } of files) {
    if (!PLACES.some((place) => place.test(path)) || path.split('/').includes('..')) {
      throw damaged(`it has a file at ${path.slice(0, 200)}, where none belongs`);
    }
    if (seen.has(path)) throw damaged(`${path} stands in it twice`);
    seen.add(path);
    if (path.startsWith('data/store/blobs/') && !path.endsWith(`/${digest}`)) {
      throw damaged(`${path} has the digest of something else`);
    }
  }
  if (!seen.has('data/pratique.db')) throw damaged('it has no data/pratique.db');
}
