// The documents of a configuration server: one VM's values and items with serial and expiry, in a signed envelope.
//
// docs/guest-config.md describes the format for whoever writes such a server.
import { createPrivateKey, createPublicKey, type KeyObject } from 'node:crypto';
import { type Static, Type } from 'typebox';
import { canonicalJson } from '../base/digest-text.ts';
import {
  type Envelope,
  EnvelopeSchema,
  openEnvelope,
  type SigningKey,
  sealEnvelope,
  signingKeyOf,
  type VerifyKey,
  verifyKeyOf,
} from '../base/dsse.ts';
import { makeParser, parseJson } from '../base/parse.ts';
import { printable } from '../base/printable.ts';
import { makeCheck, misfitText } from '../base/schema-check.ts';
import { VmIdSchema } from '../model/ids.ts';
import { GuestConfigError } from './error.ts';
import { type Layer, layerOf } from './layer.ts';

export const DOCUMENT_FORMAT = 'pratique.guest-config/1';
export const DOCUMENT_TYPE = 'application/vnd.pratique.guest-config+json';

const strict = { additionalProperties: false } as const;
const time = Type.String({ pattern: '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{3})?Z$' });

const DocumentSchema = Type.Object(
  {
    format: Type.Literal(DOCUMENT_FORMAT),
    vm: VmIdSchema,
    /** Grows with every document of a VM. */
    serial: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
    issuedAt: time,
    expiresAt: time,
    /** The tables of a layer; checked by `layerOf`. */
    values: Type.Optional(Type.Unknown()),
    items: Type.Optional(Type.Unknown()),
  },
  strict,
);
export type ServerDocument = Static<typeof DocumentSchema>;

const checkDocument = makeCheck(DocumentSchema);
const parseEnvelope = makeParser(EnvelopeSchema, 'refused/guest-config-document');

/** A document that was verified. */
export type OpenedDocument = {
  readonly document: ServerDocument;
  readonly expiresAtMs: number;
  readonly layer: Layer;
  readonly envelope: Envelope;
};

/** The keys whose documents are believed, from the configuration. Throws GuestConfigError `usage/guest-config`. */
export function verifyKeysOf(publicKeys: readonly string[]): readonly VerifyKey[] {
  return publicKeys.map((text) => {
    const key = verifyKeyOf(publicKeyOf(text) ?? notAKey(text));
    return key ?? notAKey(text);
  });
}

function publicKeyOf(text: string): KeyObject | null {
  try {
    return createPublicKey({ key: Buffer.from(text, 'base64'), format: 'der', type: 'spki' });
  } catch {
    return null;
  }
}

function notAKey(text: string): never {
  throw new GuestConfigError('usage/guest-config', `guestConfigServer: ${printable(text, 60)} is no ed25519 key`, {
    next: 'give what `pratique config sign` prints as the public key',
  });
}

/** The key that signs, from a PEM (PKCS 8). Throws GuestConfigError `usage/guest-config`. */
export function signingKey(pem: string, path: string): SigningKey {
  const refuse = () =>
    new GuestConfigError('usage/guest-config', `${path} holds no ed25519 private key`, {
      next: `make one: openssl genpkey -algorithm ed25519 -out ${path}`,
    });
  let key: SigningKey | null = null;
  try {
    key = signingKeyOf(createPrivateKey(pem));
  } catch {
    throw refuse(); // The engine's own message may quote the key.
  }
  if (key === null) throw refuse();
  return key;
}

/** Seals a document, unless it is one that no host would believe. Throws GuestConfigError `usage/guest-config`. */
export function sealDocument(document: unknown, keys: readonly SigningKey[]): Envelope {
  checkedDocument(document, 'the document', 'usage/guest-config');
  return sealEnvelope(DOCUMENT_TYPE, Buffer.from(canonicalJson(document)), keys);
}

/** What a server sent, as an envelope. Throws PratiqueError `refused/guest-config-document`. */
export function readEnvelope(text: string, url: string): Envelope {
  return parseEnvelope(parseJson(text, url, 'refused/guest-config-document'), url);
}

/** A document for this VM by one of these keys. Throws GuestConfigError `refused/guest-config-…` for any other. */
export function openDocument(
  envelope: Envelope,
  { url, vm, keys }: { readonly url: string; readonly vm: string; readonly keys: readonly VerifyKey[] },
): OpenedDocument {
  const payload = openEnvelope(envelope, DOCUMENT_TYPE, keys);
  if (payload === null) {
    throw new GuestConfigError('refused/guest-config-signature', `${url}: signed by none of the keys of this host`, {
      next: 'check guestConfigServer.publicKeys against the key of whoever signs',
    });
  }
  const value = parseJson(payload.toString('utf8'), url, 'refused/guest-config-document');
  const { document, layer } = checkedDocument(value, url, 'refused/guest-config-document');
  if (document.vm !== vm) {
    throw new GuestConfigError('refused/guest-config-vm', `${url}: the document is one of ${document.vm}`, {
      next: 'mend the server: each VM has a document of its own',
    });
  }
  return { document, layer, envelope, expiresAtMs: Date.parse(document.expiresAt) };
}

type FaultCode = 'usage/guest-config' | 'refused/guest-config-document';

function checkedDocument(value: unknown, url: string, code: FaultCode): { document: ServerDocument; layer: Layer } {
  const found = checkDocument(value);
  if (found !== null)
    throw new GuestConfigError(code, `${url}: ${misfitText(found)}`, { next: 'see docs/guest-config.md' });
  const document = value as ServerDocument; // The cast holds: the check has just passed.
  for (const key of ['issuedAt', 'expiresAt'] as const) {
    if (!Number.isNaN(Date.parse(document[key]))) continue;
    throw new GuestConfigError(code, `${url}: \`${key}\` is no time`, { next: 'see docs/guest-config.md' });
  }
  const { values, items, serial, vm } = document;
  const tables = { ...(values === undefined ? {} : { values }), ...(items === undefined ? {} : { items }) };
  const at = () => `${url} serial ${serial}`;
  return { document, layer: layerOf(tables, { name: `vm ${vm}`, source: 'server', at }) };
}
