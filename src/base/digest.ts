// SHA-256 digests: the branded type, and hashing of bytes, text and files.
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type Digest, isDigest } from './digest-text.ts';

export { type Digest, isDigest };

/** SHA-256 of bytes or UTF-8 text, 64 lower-case hex digits. */
export function digestOf(content: Uint8Array | string): Digest {
  // The cast holds: sha256 in hex is what a Digest is.
  return createHash('sha256').update(content).digest('hex') as Digest;
}

/** SHA-256 of a file's content, read in a stream. Throws the file system's error. */
export async function digestOfFile(path: string): Promise<Digest> {
  const hash = createHash('sha256');
  for await (const piece of createReadStream(path, { highWaterMark: 1024 * 1024 })) hash.update(piece as Buffer);
  return hash.digest('hex') as Digest;
}

/** 128 bits from the system's random source, as 32 hex digits: nonces and ids nobody can guess. */
export function randomToken(): string {
  return randomBytes(16).toString('hex');
}
