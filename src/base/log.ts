// The structured log, to stderr. Nothing else in the program writes logs.
import { type Logger, pino } from 'pino';

export type Log = Pick<Logger, 'debug' | 'info' | 'warn' | 'error' | 'child'>;

/** Field names whose values never reach a log line, wherever they stand. */
const SECRET_FIELDS = ['token', 'authorization', 'password', 'secret', 'privateKey'];

/** A logger to stderr at the given level, secrets redacted. */
export function makeLog(level: string): Log {
  const paths = SECRET_FIELDS.flatMap((name) => [name, `*.${name}`, `*.*.${name}`]);
  return pino({ level, redact: { paths, censor: '[redacted]' } }, pino.destination({ fd: 2, sync: false }));
}

/** A logger that says nothing. */
export const silentLog: Log = pino({ level: 'silent' });
