// How commands speak: one JSON document or plain text on stdout, notes and errors on stderr, colours on terminals only.
import { messageChain, PratiqueError } from '../../src/base/errors.ts';
import { printable, printableBlock } from '../../src/base/printable.ts';
import { redactText } from '../../src/base/redact.ts';

/** The part of a terminal or pipe that we use. */
export type TextStream = {
  readonly write: (text: string) => unknown;
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
  readonly rows?: number | undefined;
};
export type Terminal = { readonly stdout: TextStream; readonly stderr: TextStream; readonly env: NodeJS.ProcessEnv };

export type Colour = 'red' | 'green' | 'yellow' | 'dim' | 'bold';

export type Output = {
  readonly isJson: boolean;
  readonly stderr: TextStream;
  /** Columns of stdout; null when piped: then nothing is cut. */
  readonly columns: number | null;
  /** What was asked for: the value as JSON, or its text. */
  readonly show: (value: unknown, text: () => string) => void;
  /** That something was done: the value as JSON; a sentence on a terminal; nothing when piped. */
  readonly done: (value: unknown, sentence: string) => void;
  /** A remark for a person who is watching: only when stderr is a terminal. */
  readonly note: (sentence: string) => void;
  /** A remark that must not be lost: always on stderr. */
  readonly warn: (sentence: string) => void;
  readonly paint: (colour: Colour, text: string) => string;
  readonly fail: (error: unknown) => void;
};

const SGR: Readonly<Record<Colour, number>> = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33 };

/** Whether colours may be used on a stream (https://no-color.org). */
export function hasColours(stream: TextStream, env: NodeJS.ProcessEnv): boolean {
  return stream.isTTY === true && (env.NO_COLOR ?? '') === '' && env.TERM !== 'dumb';
}

/** The text in a colour. */
export function painted(colour: Colour, text: string): string {
  return `\u001b[${SGR[colour]}m${text}\u001b[0m`;
}

/** An output for one command. */
export function makeOutput({ stdout, stderr, env }: Terminal, isJson: boolean): Output {
  const isColoured = hasColours(stdout, env);
  return {
    isJson,
    stderr,
    columns: stdout.isTTY === true ? (stdout.columns ?? 80) : null,
    show: (value, text) => {
      stdout.write(`${isJson ? safeJson(value) : text()}\n`);
    },
    done: (value, sentence) => {
      if (isJson) stdout.write(`${safeJson(value)}\n`);
      else if (stdout.isTTY === true) stdout.write(`${printable(sentence, 1_000)}\n`);
    },
    note: (sentence) => {
      if (stderr.isTTY === true) stderr.write(`${printable(sentence, 1_000)}\n`);
    },
    warn: (sentence) => {
      stderr.write(`pratique: ${printable(sentence, 1_000)}\n`);
    },
    paint: (colour, text) => (isColoured ? painted(colour, text) : text),
    fail: (error) => {
      stderr.write(errorText(error));
      if (isJson) stdout.write(`${safeJson({ error: errorDocument(error) })}\n`);
    },
  };
}

/** JSON (one line without `indent`) in which nothing can act on a terminal: control and direction characters are escaped, not removed. */
export function safeJson(value: unknown, indent?: number): string {
  return JSON.stringify(value, null, indent).replace(/[\u007f-\u009f\u2028\u2029\p{Cf}]/gu, (found) =>
    [...Array(found.length).keys()]
      .map((index) => `\\u${found.charCodeAt(index).toString(16).padStart(4, '0')}`)
      .join(''),
  );
}

function errorDocument(error: unknown): { code: string; message: string; next: string | null } {
  if (error instanceof PratiqueError) {
    return { code: error.code, message: messageChain(error), next: error.next ?? null };
  }
  return { code: 'internal/bug', message: messageChain(error), next: 'report this with the text on stderr' };
}

function errorText(error: unknown): string {
  const { message, next } = errorDocument(error);
  const lines = [`pratique: ${printableBlock(message, 4_000)}`];
  if (next !== null) lines.push(`  next: ${printable(next, 1_000)}`);
  if (!(error instanceof PratiqueError) && error instanceof Error)
    lines.push(printableBlock(redactText(error.stack ?? ''), 4_000));
  return `${lines.join('\n')}\n`;
}
