// The last good document of each VM, durable on the host; and its serial, which outlives the document itself.
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { EnvelopeSchema } from '../base/dsse.ts';
import { writeDurably } from '../base/durable-file.ts';
import { ETAG_CHARS_MAX } from '../base/limits.ts';
import { makeParser, parseJson } from '../base/parse.ts';
import { DigestSchema } from '../model/digest-schema.ts';
import { VmIdSchema } from '../model/ids.ts';

const nullable = <S extends Parameters<typeof Type.Union>[0][number]>(schema: S) => Type.Union([schema, Type.Null()]);

const KeptSchema = Type.Object(
  {
    format: Type.Literal('pratique.guest-config-kept/1'),
    vm: VmIdSchema,
    serial: Type.Integer({ minimum: 1 }),
    /** Of the envelope's payload: a serial names one document. */
    digest: DigestSchema,
    /** Null: the VM is gone. */
    envelope: nullable(EnvelopeSchema),
    url: Type.String(),
    etag: nullable(Type.String({ maxLength: ETAG_CHARS_MAX })),
    fetchedAtMs: Type.Number(),
  },
  { additionalProperties: false },
);
export type Kept = Static<typeof KeptSchema>;

const parseKept = makeParser(KeptSchema, 'host-fault/guest-config');

export type KeptDocuments = {
  readonly load: (vm: string) => Promise<Kept | null>;
  readonly save: (kept: Kept) => Promise<void>;
};

/** Opens the folder. `load` throws PratiqueError `host-fault/guest-config` for a damaged file: a serial must not be forgotten silently. */
export async function openKeptDocuments(folder: string): Promise<KeptDocuments> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const pathOf = (vm: string) => join(folder, `${vm}.json`);
  return {
    load: async (vm) => {
      const text = await readFile(pathOf(vm), 'utf8').catch((cause: unknown) => {
        if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
        throw cause;
      });
      if (text === null) return null;
      return parseKept(parseJson(text, pathOf(vm), 'host-fault/guest-config'), pathOf(vm));
    },
    save: async (kept) => await writeDurably(pathOf(kept.vm), `${JSON.stringify(kept)}\n`, 0o600),
  };
}
