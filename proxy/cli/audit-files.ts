// The small files that `pratique audit verify` is given: a checkpoint kept elsewhere, public keys.
import { createReadStream } from 'node:fs';
import { type PublicKey, readPublicKeys } from '../../src/audit/host-key.ts';
import { type ErrorCode, PratiqueError } from '../../src/base/errors.ts';
import { AUDIT_KEYS_FILE_BYTES_MAX, CHECKPOINT_FILE_BYTES_MAX } from '../../src/base/limits.ts';
import { parseJson } from '../../src/base/parse.ts';
import { makeCheck, misfitText } from '../../src/base/schema-check.ts';
import { AuditCheckpointSchema } from '../api-schemas.ts';
import type { AuditCheckpoint } from '../service.ts';

type SmallFile = { readonly code: ErrorCode; readonly bytesMax: number; readonly next: string };

const CHECKPOINT: SmallFile = {
  code: 'usage/checkpoint',
  bytesMax: CHECKPOINT_FILE_BYTES_MAX,
  next: 'give a file with what `pratique audit checkpoint` printed',
};
const KEYS: SmallFile = {
  code: 'usage/audit-key',
  bytesMax: AUDIT_KEYS_FILE_BYTES_MAX,
  next: 'give a copy of audit-keys.pub of the audit folder',
};

/** The path of a file argument; `-` is standard input. */
export function pathOf(argument: string): string {
  return argument === '-' ? '/dev/stdin' : argument;
}

/** The checkpoint in a file or pipe. Throws `usage/checkpoint` naming file and field; whether it is genuine, the chain's key tells. */
export async function readCheckpoint(path: string): Promise<AuditCheckpoint> {
  const value = parseJson(await readBounded(path, CHECKPOINT), path, CHECKPOINT.code);
  const found = makeCheck(AuditCheckpointSchema)(value);
  if (found === null) return value as AuditCheckpoint; // The cast holds: the check against this schema has just passed.
  throw new PratiqueError(CHECKPOINT.code, `${path}: ${misfitText(found)}`, { next: CHECKPOINT.next });
}

/** The public keys in a file or pipe, oldest first. Throws `usage/audit-key` naming the file. */
export async function readKeys(path: string): Promise<readonly PublicKey[]> {
  return readPublicKeys(await readBounded(path, KEYS), path);
}

async function readBounded(path: string, { code, bytesMax, next }: SmallFile): Promise<string> {
  const pieces: Buffer[] = [];
  try {
    // `end` counts itself in: one byte over the limit tells a file that is too large.
    for await (const piece of createReadStream(path, { end: bytesMax })) {
      pieces.push(piece as Buffer); // The cast holds: no encoding is set on the stream.
    }
  } catch (cause) {
    throw new PratiqueError(code, `${path}: cannot be read`, { cause, next });
  }
  const bytes = Buffer.concat(pieces);
  if (bytes.length <= bytesMax) return bytes.toString('utf8');
  throw new PratiqueError(code, `${path}: larger than ${bytesMax} bytes`, { next });
}
