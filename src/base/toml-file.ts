// Parses a TOML document against a schema; errors name the file, the line and the key.
import { parse, TomlError } from 'smol-toml';
import type { Static, TSchema } from 'typebox';
import type { ErrorCode, ErrorOptions, PratiqueError } from './errors.ts';
import { printable } from './printable.ts';
import { makeCheck, misfitText } from './schema-check.ts';
import { lineOfKey } from './toml-lines.ts';

type ErrorClass = new (code: ErrorCode, message: string, options?: ErrorOptions) => PratiqueError;

/** The parsed value. Throws the given error class with `usage/config`: "FILE:LINE: `key` is not a known key; …". */
export function parseTomlAs<S extends TSchema>(schema: S, text: string, path: string, Failure: ErrorClass): Static<S> {
  const value = parseToml(text, path, Failure);
  const found = makeCheck(schema)(value);
  if (found === null) return value as Static<S>; // The cast holds: the check has just passed.
  throw new Failure('usage/config', `${path}:${lineOfKey(text, found.path)}: ${misfitText(found)}`, {
    next: 'correct the file',
  });
}

/** The document as plain values. Throws the given error class with file and line when it is no TOML. */
export function parseToml(
  text: string,
  path: string,
  Failure: ErrorClass,
  code: ErrorCode = 'usage/config',
): Record<string, unknown> {
  try {
    return parse(text);
  } catch (cause) {
    if (!(cause instanceof TomlError)) throw cause;
    const problem = printable(cause.message.split('\n')[0] ?? 'not TOML');
    throw new Failure(code, `${path}:${cause.line}: ${problem}`, { next: 'correct the file' });
  }
}
