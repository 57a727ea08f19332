// Signed envelopes: DSSE v1.0.2 (protocol.md, envelope.md) with ed25519 keys, for audit records and for what license servers say.
import { createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from 'node:crypto';
import { type Static, Type } from 'typebox';
import { digestOf } from './digest.ts';
import { DSSE_SIGNATURES_MAX } from './limits.ts';

/** What verifies. */
export type VerifyKey = {
  /** SHA-256 of the public key (SPKI, DER): what envelopes call it. */
  readonly keyid: string;
  /** Base64 of the same DER. */
  readonly publicKey: string;
  /** PEM (SPKI), for whoever verifies elsewhere. */
  readonly publicPem: string;
  /** Whether the signature (base64) is this key's; one in another spelling of base64 is not. */
  readonly isSigned: (content: Uint8Array | string, signature: string) => boolean;
};

/** What signs. */
export type SigningKey = VerifyKey & {
  /** Base64 signature of the bytes, or of the text as UTF-8. */
  readonly sign: (content: Uint8Array | string) => string;
};

/** DSSE's pre-authentication encoding: what is signed, so that no payload passes for one of another type. */
export function preAuthentication(payloadType: string, payload: Uint8Array): Buffer {
  const head = `DSSEv1 ${Buffer.byteLength(payloadType)} ${payloadType} ${payload.length} `;
  return Buffer.concat([Buffer.from(head), payload]);
}

const strict = { additionalProperties: false } as const;
/** 64 bytes in base64. */
const SIGNATURE_CHARS = 88;

/** An envelope as it travels; nothing in it is believed before `openEnvelope`. Standard base64 with padding, as in the specification's examples. */
export const EnvelopeSchema = Type.Object(
  {
    payload: Type.String({ pattern: '^[A-Za-z0-9+/]*={0,2}$' }),
    payloadType: Type.String({ minLength: 1, maxLength: 200 }),
    signatures: Type.Array(
      Type.Object({ keyid: Type.String({ maxLength: 128 }), sig: Type.String({ maxLength: SIGNATURE_CHARS }) }, strict),
      { minItems: 1, maxItems: DSSE_SIGNATURES_MAX },
    ),
  },
  strict,
);
export type Envelope = Static<typeof EnvelopeSchema>;

/** Puts a payload into an envelope, signed by each of the keys. */
export function sealEnvelope(payloadType: string, payload: Uint8Array, keys: readonly SigningKey[]): Envelope {
  const signed = preAuthentication(payloadType, payload);
  return {
    payload: Buffer.from(payload).toString('base64'),
    payloadType,
    signatures: keys.map((key) => ({ keyid: key.keyid, sig: key.sign(signed) })),
  };
}

/**
 * The payload of an envelope of this type that one of these keys signed; null for any other. The key ids in it are a hint only, as
 * the specification says: every key is tried.
 */
export function openEnvelope(
  envelope: Envelope,
  payloadType: string,
  keys: readonly Pick<VerifyKey, 'isSigned'>[],
): Buffer | null {
  const payload = Buffer.from(envelope.payload, 'base64');
  if (envelope.payloadType !== payloadType || payload.toString('base64') !== envelope.payload) return null;
  const signed = preAuthentication(payloadType, payload);
  const isGenuine = keys.some((key) => envelope.signatures.some(({ sig }) => key.isSigned(signed, sig)));
  return isGenuine ? payload : null;
}

/** A public key that verifies; null when it is not ed25519. */
export function verifyKeyOf(key: KeyObject): VerifyKey | null {
  if (key.asymmetricKeyType !== 'ed25519') return null;
  const der = key.export({ type: 'spki', format: 'der' });
  return {
    keyid: digestOf(der),
    publicKey: der.toString('base64'),
    publicPem: key.export({ type: 'spki', format: 'pem' }).toString(),
    isSigned: (content, signature) => {
      const bytes = Buffer.from(signature, 'base64');
      return bytes.toString('base64') === signature && verify(null, bytesOf(content), key, bytes);
    },
  };
}

/** A private key that signs; null when it is not ed25519. */
export function signingKeyOf(privateKey: KeyObject): SigningKey | null {
  const verifying = verifyKeyOf(createPublicKey(privateKey));
  if (verifying === null) return null;
  return { ...verifying, sign: (content) => sign(null, bytesOf(content), privateKey).toString('base64') };
}

/** A new private key, as PEM (PKCS 8). */
export function makePrivatePem(): string {
  return generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
}

function bytesOf(content: Uint8Array | string): Uint8Array {
  return typeof content === 'string' ? Buffer.from(content) : content;
}
