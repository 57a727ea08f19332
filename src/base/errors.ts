// Errors with a stable code, and the one table that maps a code's family to blame, HTTP status and exit code.
import { redactText } from './redact.ts';

/** Who has to act. */
export type Blame = 'ours' | 'vendor' | 'guest' | 'operator' | 'host' | 'policy';

type Family = {
  readonly blame: Blame;
  readonly httpStatus: number;
  readonly exitCode: number;
};

/** Every error code is `family/detail`; the family decides whose fault it is and what the surfaces answer. */
export const ERROR_FAMILIES = {
  usage: { blame: 'operator', httpStatus: 400, exitCode: 2 },
  'not-found': { blame: 'operator', httpStatus: 404, exitCode: 2 },
  conflict: { blame: 'operator', httpStatus: 409, exitCode: 1 },
  refused: { blame: 'policy', httpStatus: 403, exitCode: 5 },
  'vendor-ill': { blame: 'vendor', httpStatus: 502, exitCode: 6 },
  'guest-fault': { blame: 'guest', httpStatus: 422, exitCode: 4 },
  'host-unfit': { blame: 'host', httpStatus: 503, exitCode: 3 },
  'host-fault': { blame: 'host', httpStatus: 500, exitCode: 1 },
  'daemon-down': { blame: 'operator', httpStatus: 503, exitCode: 7 },
  timeout: { blame: 'host', httpStatus: 504, exitCode: 1 },
  internal: { blame: 'ours', httpStatus: 500, exitCode: 1 },
} as const satisfies Record<string, Family>;

export type ErrorFamily = keyof typeof ERROR_FAMILIES;
export type ErrorCode = `${ErrorFamily}/${string}`;

/** Exit codes that are no errors of a command but answers (contracts.md). */
export const EXIT_DONE = 0;
export const EXIT_FAILED = 1;
export const EXIT_QUARANTINED = 4;
export const EXIT_DRIFT = 8;

export type ErrorOptions = {
  readonly cause?: unknown;
  /** What the reader should do next, an imperative sentence without a full stop. */
  readonly next?: string;
};

/** An expected failure from outside: stable `code`, a message that says what happened to what, and the next step. */
export class PratiqueError extends Error {
  readonly code: ErrorCode;
  readonly next: string | undefined;

  constructor(code: ErrorCode, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.code = code;
    this.next = options.next;
  }
}

/** The family of an error code. */
export function errorFamily(code: ErrorCode): ErrorFamily {
  // The cast holds because ErrorCode is built from the table's keys.
  return code.slice(0, code.indexOf('/')) as ErrorFamily;
}

/** Blame, HTTP status and exit code of anything thrown; what is not a PratiqueError is our bug. */
export function classifyError(error: unknown): Family & { readonly code: ErrorCode } {
  const code: ErrorCode = error instanceof PratiqueError ? error.code : 'internal/bug';
  return { code, ...ERROR_FAMILIES[errorFamily(code)] };
}

/** The whole chain of messages, outermost first, without the next step and without credentials: what programs said may hold some. */
export function messageChain(error: unknown): string {
  const parts: string[] = [];
  let current: unknown = error;
  for (let depth = 0; depth < 8 && current !== undefined; depth += 1) {
    parts.push(current instanceof Error ? current.message : String(current));
    current = current instanceof Error ? current.cause : undefined;
  }
  return redactText(parts.join(': '));
}

/** The chain of messages and the next step, for the one place that prints it. */
export function describeError(error: unknown): string {
  const next = error instanceof PratiqueError && error.next !== undefined ? `; ${error.next}` : '';
  return messageChain(error) + next;
}

/** Stops on a broken promise of our own code. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`assertion failed: ${message}`);
}
