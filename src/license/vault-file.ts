// The file of one license in the vault: its sealed tokens and what may be shown of them. Old or new after a crash, never a mixture.
import { lstat, open, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { syncFolder, writeDurably } from '../base/durable-file.ts';
import { LICENSE_TOKEN_BYTES_MAX, VAULT_FILE_BYTES_MAX } from '../base/limits.ts';
import { makeParser, parseJson } from '../base/parse.ts';
import { LICENSE_ID_PATTERN, LicenseIdSchema } from '../model/license.ts';
import { LicenseError } from './license-error.ts';

const SlotSchema = Type.Object(
  {
    /** Random; a part of the name the token is sealed by. */
    id: Type.String({ pattern: '^[0-9a-f]{16}$' }),
    sealedBy: Type.Union([Type.Literal('systemd-creds'), Type.Literal('key-file')]),
    sealed: Type.String({ minLength: 1, maxLength: 3 * LICENSE_TOKEN_BYTES_MAX }),
    addedAtMs: Type.Integer({ minimum: 0 }),
    lastFour: Type.String({ pattern: '^(|[\\u0021-\\u007e]{4})$' }),
  },
  { additionalProperties: false },
);
export type SealedSlot = Static<typeof SlotSchema>;

const FileSchema = Type.Object(
  {
    format: Type.Literal('pratique.vault/1'),
    license: LicenseIdSchema,
    /** Absent while a first token is tried: also after a restore, for no backup has tokens. */
    current: Type.Optional(SlotSchema),
    next: Type.Optional(SlotSchema),
  },
  { additionalProperties: false },
);
export type VaultFile = Static<typeof FileSchema>;

const parseFile = makeParser(FileSchema, 'host-fault/vault');

const pathOf = (folder: string, license: string): string => join(folder, `${license}.json`);

/** The licenses that have a file, and what a crash left is taken away. */
export async function listVaultFiles(folder: string): Promise<readonly string[]> {
  const names = await readdir(folder);
  for (const name of names.filter((each) => each.endsWith('.new'))) await rm(join(folder, name), { force: true });
  const isId = (name: string) => new RegExp(LICENSE_ID_PATTERN).test(name);
  return names.flatMap((name) => (name.endsWith('.json') ? [name.slice(0, -'.json'.length)] : [])).filter(isId);
}

/** Throws LicenseError or PratiqueError `host-fault/vault` for a file that is not as it was written. */
export async function readVaultFile(folder: string, license: string): Promise<VaultFile> {
  const path = pathOf(folder, license);
  const stats = await lstat(path);
  if (!stats.isFile() || stats.size > VAULT_FILE_BYTES_MAX) {
    throw new LicenseError('host-fault/vault', `${path} is no file of the vault`);
  }
  const handle = await open(path, 'r');
  try {
    const file = parseFile(parseJson(await handle.readFile('utf8'), path, 'host-fault/vault'), path);
    if (file.current === undefined && file.next === undefined)
      throw new LicenseError('host-fault/vault', `${path} has no token`);
    if (file.license === license) return file;
    throw new LicenseError('host-fault/vault', `${path} is the file of another license`);
  } finally {
    await handle.close();
  }
}

export async function writeVaultFile(folder: string, file: VaultFile): Promise<void> {
  await writeDurably(pathOf(folder, file.license), `${JSON.stringify(file)}\n`, 0o600);
}

export async function removeVaultFile(folder: string, license: string): Promise<void> {
  await rm(pathOf(folder, license), { force: true });
  await syncFolder(folder);
}
