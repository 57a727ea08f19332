// release.json: how somebody describes a release to `pratique vendor publish`. README.md of the vendor folder shows one.
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { PratiqueError } from '../../base/errors.ts';
import { makeParser, parseJson } from '../../base/parse.ts';
import { CompressionSchema, InstallActionSchema } from '../../model/release.ts';
import { VendorError } from '../errors.ts';
import { type Custom, CustomSchema, checkMeaning } from './offer.ts';

/** Like a target's `custom`, but no unknown field, and a bundle's compression may be left to the publisher. */
const [BundleAction] = InstallActionSchema.anyOf;
const DescriptionSchema = Type.Object(
  {
    ...CustomSchema.properties,
    install: Type.Union([
      Type.Object(
        { ...BundleAction.properties, compression: Type.Optional(CompressionSchema) },
        { additionalProperties: false },
      ),
      Type.Object({ action: Type.Literal('agent') }, { additionalProperties: false }),
    ]),
  },
  { additionalProperties: false },
);
export type ReleaseDescription = Static<typeof DescriptionSchema>;

const parseDescription = makeParser(DescriptionSchema, 'usage/release-description');

/** Bytes of a release.json: a page of text and two hundred advisories. */
const DESCRIPTION_BYTES_MAX = 256 * 1024;

/** Reads `<folder>/release.json`. Throws an error `usage/release-description` that names the file and the field. */
export async function readDescription(folder: string): Promise<ReleaseDescription> {
  const path = join(folder, 'release.json');
  const next = 'correct the file; src/vendor/README.md describes it';
  try {
    const { size } = await stat(path);
    if (size > DESCRIPTION_BYTES_MAX) throw new Error(`it is larger than ${DESCRIPTION_BYTES_MAX} bytes`);
    const text = await readFile(path, 'utf8');
    const description = parseDescription(parseJson(text, path, 'usage/release-description'), path);
    checkMeaning(customOf(description, 'none'), path);
    return description;
  } catch (cause) {
    if (cause instanceof PratiqueError) throw new VendorError('usage/release-description', cause.message, { next });
    throw new VendorError('usage/release-description', `${path} cannot be read`, { cause, next });
  }
}

/** What stands in the target's `custom`: the description with the compression that was used. */
export function customOf(description: ReleaseDescription, compression: 'none' | 'gzip' | 'zstd'): Custom {
  const { install } = description;
  if (install.action === 'agent') return { ...description, install };
  return { ...description, install: { ...install, compression: install.compression ?? compression } };
}
