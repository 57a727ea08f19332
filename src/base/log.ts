// The structured log, to stderr. Nothing else in the program writes logs.
import { type Logger, pino } from 'pino';
import { redactText } from './redact.ts';

export type Log = Pick<Logger, 'debug' | 'info' | 'warn' | 'error' | 'child'>;

/** Takes one line, its newline included. */
export type LogTarget = { readonly write: (line: string) => unknown };

/** A logger at the given level. Every line passes the redactor as a whole: whatever field, depth or error a secret stands in. */
export function makeLog(level: string, target: LogTarget = pino.destination({ fd: 2, sync: false })): Log {
  return pino({ level }, { write: (line) => void target.write(redactText(line)) });
}

/** A logger that says nothing. */
export const silentLog: Log = pino({ level: 'silent' });
