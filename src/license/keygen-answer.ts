// Whether an answer is Keygen's own: its signature over request line, host, date and digest (https://keygen.sh/docs/api/signatures/).
import { createHash, createPublicKey } from 'node:crypto';
import { Type } from 'typebox';
import { type VerifyKey, verifyKeyOf } from '../base/dsse.ts';
import { LICENSE_ANSWER_BYTES_MAX, LICENSE_KEYGEN_AGE_MAX_MS } from '../base/limits.ts';
import { makeParser, type Parser, parseJson } from '../base/parse.ts';
import { LicenseError } from './license-error.ts';
import { ill } from './signed-answer.ts';
import type { LicenseHttpAnswer, LicenseHttpRequest } from './transport.ts';

const ILL = 'vendor-ill/license-server';
const WHAT = "Keygen's answer";

/** DER before the 32 bytes of an ed25519 public key (RFC 8410, 4). */
const SPKI_HEAD = Buffer.from('302a300506032b6570032100', 'hex');

const uuid = Type.String({ pattern: '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' });
const code = Type.String({ pattern: '^[A-Z][A-Z0-9_]{1,63}$' });
const time = Type.String({
  maxLength: 40,
  pattern: '^\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}:\\d{2}(\\.\\d{1,9})?(Z|[+-]\\d{2}:\\d{2})$',
});
const timeOrNull = Type.Union([time, Type.Null()]);
const countOrNull = Type.Union([Type.Integer({ minimum: 0 }), Type.Null()]);

/** https://keygen.sh/docs/api/licenses/#licenses-actions-validate-key; fields that are not listed are passed over. */
export const ValidationSchema = Type.Object({
  meta: Type.Object({
    ts: time,
    valid: Type.Boolean(),
    code,
    nonce: Type.Integer(),
    scope: Type.Optional(Type.Object({ fingerprint: Type.Optional(Type.String()) })),
  }),
  data: Type.Union([
    Type.Object({
      id: uuid,
      attributes: Type.Object({ expiry: timeOrNull, maxMachines: Type.Optional(countOrNull) }),
      relationships: Type.Optional(
        Type.Object({
          machines: Type.Optional(
            Type.Object({ meta: Type.Optional(Type.Object({ count: Type.Integer({ minimum: 0 }) })) }),
          ),
        }),
      ),
    }),
    Type.Null(),
  ]),
});

/** https://keygen.sh/docs/api/machines/#machines-object */
export const MachineSchema = Type.Object({
  data: Type.Object({
    id: uuid,
    attributes: Type.Object({ fingerprint: Type.String({ maxLength: 255 }), nextHeartbeat: Type.Optional(timeOrNull) }),
    relationships: Type.Object({ license: Type.Object({ data: Type.Object({ id: uuid }) }) }),
  }),
});

/** https://keygen.sh/docs/api/errors/ */
export const ErrorsSchema = Type.Object({
  errors: Type.Array(Type.Object({ code: Type.Optional(code) }), { minItems: 1, maxItems: 100 }),
});

/** https://keygen.sh/docs/api/machines/#machines-actions-check-out */
export const MachineFileSchema = Type.Object({
  data: Type.Object({ attributes: Type.Object({ certificate: Type.String({ maxLength: LICENSE_ANSWER_BYTES_MAX }) }) }),
});
const CertificateSchema = Type.Object({ enc: Type.String(), sig: Type.String({ maxLength: 88 }), alg: Type.String() });
const FileSchema = Type.Object({
  meta: Type.Object({ issued: time, expiry: time }),
  data: MachineSchema.properties.data,
});

const parseCertificate = makeParser(CertificateSchema, ILL);
const parseFile = makeParser(FileSchema, ILL);

/** Keygen's public key, as its dashboard shows it: 64 hex digits; or as PEM. Throws LicenseError `usage/license-key`. */
export function readKeygenKey(text: string): VerifyKey {
  const trimmed = text.trim();
  try {
    const key = /^[0-9a-f]{64}$/i.test(trimmed)
      ? createPublicKey({ key: Buffer.concat([SPKI_HEAD, Buffer.from(trimmed, 'hex')]), format: 'der', type: 'spki' })
      : createPublicKey(trimmed);
    const found = verifyKeyOf(key);
    if (found !== null) return found;
  } catch {
    // Told below: the engine's own message may quote what it read.
  }
  throw new LicenseError('usage/license-key', 'this is no ed25519 public key of a Keygen account', {
    next: "give the account's Ed25519 verify key from Keygen's settings: 64 hex digits",
  });
}

/** Where and when something was asked. */
export type KeygenQuestion = {
  readonly request: LicenseHttpRequest;
  /** `api.keygen.sh`; what the server calls itself. */
  readonly host: string;
  /** The path below which the request's stands at the server; empty for Keygen itself. */
  readonly root: string;
  readonly nowMs: number;
};

/**
 * Refuses an answer that the account's key did not sign for this request and host, or that is older than five minutes, as Keygen
 * advises. Returns the server's time of it. Throws LicenseError `vendor-ill/license-server`.
 */
export function checkKeygenSignature(answer: LicenseHttpAnswer, key: VerifyKey, question: KeygenQuestion): number {
  const { headers, body } = answer;
  const digest = `sha-256=${createHash('sha256').update(body).digest('base64')}`;
  // A proxy in between may write a `date` of its own: Keygen repeats its own one.
  const date = headers['keygen-date'] ?? headers.date ?? '';
  const { algorithm, signature } = readSignature(headers['keygen-signature'] ?? '');
  if (algorithm !== 'ed25519' || signature === undefined) throw ill(`${WHAT} is not signed with ed25519`);
  const { request, host, root, nowMs } = question;
  const target = `${request.method.toLowerCase()} ${root}${request.path}`;
  const signed = `(request-target): ${target}\nhost: ${host}\ndate: ${date}\ndigest: ${digest}`;
  if (!key.isSigned(signed, signature)) throw ill(`${WHAT} is not signed by the account's key, for this request`);
  const atMs = Date.parse(date);
  if (!(Math.abs(atMs - nowMs) <= LICENSE_KEYGEN_AGE_MAX_MS)) {
    throw ill(`${WHAT} is not of now: it was sent again, or the two clocks differ`, 'compare the clock of this host');
  }
  return atMs;
}

/** `keyid="…", algorithm="ed25519", signature="…", headers="(request-target) host date digest"`. */
function readSignature(header: string): { readonly algorithm?: string; readonly signature?: string } {
  if (header.length > 2_000) return {};
  const fields = [...header.matchAll(/([a-z]+)="([^"]*)"/g)].map(([, name = '', value = '']) => [name, value] as const);
  return Object.fromEntries(fields);
}

/** Parses an answer's JSON. Throws LicenseError `vendor-ill/license-server`. */
export function readKeygen<T>(parse: Parser<T>, body: Uint8Array): T {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(body);
    return parse(parseJson(text, WHAT, ILL), WHAT);
  } catch (error) {
    throw ill(error instanceof LicenseError || !(error instanceof Error) ? `${WHAT} does not fit` : error.message);
  }
}

/** A time as Keygen writes it. Throws LicenseError `vendor-ill/license-server` for one that no calendar has. */
export function keygenTime(text: string): number {
  const atMs = Date.parse(text);
  if (Number.isNaN(atMs)) throw ill(`${WHAT} names a time that there is not`);
  return atMs;
}

export type MachineFile = {
  readonly machine: string;
  readonly license: string;
  readonly fingerprint: string;
  readonly issuedAtMs: number;
  readonly expiresAtMs: number;
};

/**
 * A machine file that the account's key signed (https://keygen.sh/docs/api/cryptography/#cryptographic-lic). Throws LicenseError
 * `vendor-ill/license-server`. Encrypted ones are not read: the secret they need is the license key, which is the vault's alone.
 */
export function readMachineFile(certificate: string, key: VerifyKey): MachineFile {
  const found = /^-----BEGIN MACHINE FILE-----\n([A-Za-z0-9+/=\n]+)-----END MACHINE FILE-----\n?$/.exec(
    certificate,
  )?.[1];
  if (found === undefined) throw ill('a machine file of Keygen is none');
  const { enc, sig, alg } = readKeygen(parseCertificate, Buffer.from(found, 'base64'));
  const isGenuine = alg === 'base64+ed25519' && key.isSigned(`machine/${enc}`, sig);
  if (!isGenuine) throw ill("a machine file of Keygen is not signed by the account's key");
  const { meta, data } = readKeygen(parseFile, Buffer.from(enc, 'base64'));
  return {
    machine: data.id,
    license: data.relationships.license.data.id,
    fingerprint: data.attributes.fingerprint,
    issuedAtMs: keygenTime(meta.issued),
    expiresAtMs: keygenTime(meta.expiry),
  };
}
