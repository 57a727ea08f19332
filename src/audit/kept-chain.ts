// A chain without its daemon: the database of a host that is down, or an export on another machine. Nothing here writes.
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { pathToFileURL } from 'node:url';
import { AUDIT_LINE_CHARS_MAX, AUDIT_READ_BYTES } from '../base/limits.ts';
import { schemaVersion } from '../base/sqlite.ts';
import { AuditError } from './error.ts';
import { type PublicKey, readFolderKeys } from './host-key.ts';
import type { Checkpoint } from './record.ts';
import { AUDIT_MIGRATIONS, lineOfRow, linksOf, pageOfRows } from './rows.ts';
import { type AuditReport, type Link, verifyChain } from './verify.ts';

type KeptOptions = { readonly keys: readonly PublicKey[]; readonly checkpoint?: Checkpoint };

/**
 * Verifies the chain of an audit folder, by the folder's own public keys unless others are given. Throws AuditError when there is
 * none or it cannot be read.
 */
export async function verifyFolder(
  folder: string,
  { keys, ...options }: Partial<KeptOptions> = {},
): Promise<AuditReport> {
  const db = await openKept(folder);
  try {
    return await verifyChain({ links: linksOf(db), keys: keys ?? (await readFolderKeys(folder)), ...options });
  } finally {
    db.close();
  }
}

/** The lines of an audit folder after a number, as an export has them. Throws AuditError like `verifyFolder`. */
export async function* linesOfFolder(folder: string, afterSeq: number): AsyncIterable<string> {
  const db = await openKept(folder);
  try {
    for (let after = afterSeq; ; ) {
      const rows = pageOfRows(db, { afterSeq: after, limit: Number.MAX_SAFE_INTEGER });
      if (rows.length === 0) return;
      for (const row of rows) yield lineOfRow(row);
      after = rows.at(-1)?.seq ?? after;
    }
  } finally {
    db.close();
  }
}

/** Verifies an exported file, or a pipe, line by line. One that begins later needs the checkpoint just before. Throws AuditError when it cannot be read. */
export async function verifyFile(path: string, options: KeptOptions): Promise<AuditReport> {
  return await verifyChain({ links: linksOfFile(path), ...options });
}

async function* linksOfFile(path: string): AsyncIterable<Link> {
  let pieces: string[] = [];
  let chars = 0;
  const stream = createReadStream(path, { encoding: 'utf8', highWaterMark: AUDIT_READ_BYTES });
  try {
    for await (const chunk of stream) {
      const text = chunk as string; // The cast holds: an encoding is set on the stream.
      let start = 0;
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', start)) {
        yield { kind: 'line', line: pieces.join('') + text.slice(start, end) };
        start = end + 1;
        pieces = [];
        chars = 0;
      }
      pieces.push(text.slice(start));
      chars += text.length - start;
      if (chars > AUDIT_LINE_CHARS_MAX) {
        return yield { kind: 'unreadable', trouble: `its line is longer than ${AUDIT_LINE_CHARS_MAX} characters` };
      }
    }
  } catch (cause) {
    throw new AuditError('usage/audit-file', `${path}: cannot be read`, {
      cause,
      next: 'give a file with what `pratique audit export` printed',
    });
  }
  if (chars > 0) yield { kind: 'unreadable', trouble: 'the file ends in the middle of its line' };
}

/** Whether there is a chain in a folder, as far as one may look. */
export async function hasChain(folder: string): Promise<boolean> {
  return await stat(join(folder, 'audit.db')).then(
    () => true,
    (cause: NodeJS.ErrnoException) => cause.code !== 'ENOENT',
  );
}

async function openKept(folder: string): Promise<DatabaseSync> {
  const path = join(folder, 'audit.db');
  if (!(await hasChain(folder))) throw new AuditError('not-found/audit', `there is no audit chain in ${folder}`);
  const db = await openOrSayWhy(path);
  const schema = schemaVersion(db);
  if (schema <= AUDIT_MIGRATIONS.length) return db;
  db.close();
  throw new AuditError('host-unfit/schema-newer', `${path} was written by a newer version (schema ${schema})`, {
    next: 'verify it with the version of Pratique that wrote it, or a newer one',
  });
}

async function openOrSayWhy(path: string): Promise<DatabaseSync> {
  try {
    return openReadOnly(path);
  } catch (cause) {
    // Where SQLite can make no files beside the database nobody else writes either; but a log that lies there is part of it.
    const found = (await hasLog(path)) ? null : openUnwatched(path);
    if (found !== null) return found;
    throw new AuditError('host-fault/audit-read', `opening the audit database ${path}`, {
      cause,
      next: 'read it as the user that the daemon runs as, or copy the folder to where it can be written',
    });
  }
}

async function hasLog(path: string): Promise<boolean> {
  return await stat(`${path}-wal`).then(
    ({ size }) => size > 0,
    () => false,
  );
}

function openUnwatched(path: string): DatabaseSync | null {
  try {
    return openReadOnly(path, { immutable: '1' });
  } catch {
    return null;
  }
}

/** `parameters`: of SQLite's file names (https://sqlite.org/uri.html). */
function openReadOnly(path: string, parameters: Readonly<Record<string, string>> = {}): DatabaseSync {
  const url = pathToFileURL(path);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  const db = new DatabaseSync(url, { readOnly: true });
  try {
    db.exec('PRAGMA busy_timeout = 5000');
    db.prepare('SELECT count(*) FROM sqlite_master').get();
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}
