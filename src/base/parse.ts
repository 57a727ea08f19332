// Parse once at the edge: a typebox schema turns unknown bytes into a trusted type or into an error that names the field.
import type { Static, TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { type ErrorCode, PratiqueError } from './errors.ts';
import { printable } from './printable.ts';

export type Parser<T> = (value: unknown, what: string) => T;

/**
 * A parser for a schema. It throws a PratiqueError with the given code whose message names `what` was read and the
 * first field that does not fit. Compile it once, at module level.
 */
export function makeParser<S extends TSchema>(schema: S, code: ErrorCode): Parser<Static<S>> {
  const compiled = Compile(schema);
  return (value, what) => {
    if (compiled.Check(value)) return value as Static<S>;
    const first = [...compiled.Errors(value)][0];
    const field = first?.instancePath ? first.instancePath.slice(1).replaceAll('/', '.') : 'the whole document';
    throw new PratiqueError(code, `${what}: ${printable(field)} ${printable(first?.message ?? 'does not fit')}`);
  };
}

/** Parses JSON text; throws a PratiqueError with the given code, never the engine's own message with a piece of the text. */
export function parseJson(text: string, what: string, code: ErrorCode): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new PratiqueError(code, `${what}: not JSON`);
  }
}
