// How an error travels over the API: an RFC 9457 problem document made from the one table of codes, and back.
import { classifyError, ERROR_FAMILIES, type ErrorCode, messageChain, PratiqueError } from '../src/base/errors.ts';
import { printable } from '../src/base/printable.ts';

export type Problem = {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly code: string;
  readonly detail: string;
  readonly next: string | null;
};

/** An error that the daemon answered with, or that kept us from asking it. */
export class ApiError extends PratiqueError {}

const DETAIL_CHARS_MAX = 2_000;

/** The problem document of anything thrown. What is not a PratiqueError tells the outside nothing but that it is ours. */
export function problemOf(error: unknown): Problem {
  const { code, httpStatus, blame } = classifyError(error);
  const isKnown = error instanceof PratiqueError;
  return {
    type: `urn:pratique:error:${code}`,
    title: `${code} (${blame})`,
    status: httpStatus,
    code,
    detail: isKnown ? printable(messageChain(error), DETAIL_CHARS_MAX) : 'an error inside Pratique itself',
    next: isKnown ? (error.next ?? null) : 'look into the log of the daemon and report what it says',
  };
}

/** The error that a problem document describes, with the same code. */
export function errorOfProblem(problem: Problem): ApiError {
  const next = problem.next === null ? {} : { next: problem.next };
  return new ApiError(knownCode(problem.code), problem.detail, next);
}

/** Whether a parsed answer is a problem document. */
export function isProblem(value: unknown): value is Problem {
  if (typeof value !== 'object' || value === null) return false;
  const { code, detail, status } = value as Partial<Record<keyof Problem, unknown>>; // The cast only opens the fields for checking.
  return typeof code === 'string' && typeof detail === 'string' && typeof status === 'number';
}

function knownCode(code: string): ErrorCode {
  const family = code.slice(0, code.indexOf('/'));
  // The cast holds: the family is one of the table's keys.
  return Object.hasOwn(ERROR_FAMILIES, family) ? (code as ErrorCode) : 'internal/answer';
}
