// The reference license server's one database: its keys, licenses, hashed tokens, seats, revocations and log.
import type { DatabaseSync, Migration } from '../../src/base/sqlite.ts';

/** A lease without a row does not exist; one whose time is over holds no seat, and its row is kept for a while so that it can be revived. */
export const LICENSE_SERVER_MIGRATIONS: readonly Migration[] = [
  (db: DatabaseSync) => {
    db.exec(`
      CREATE TABLE keys (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        pem TEXT NOT NULL,
        made_at_ms INTEGER NOT NULL
      ) STRICT;
      CREATE TABLE licenses (
        id TEXT PRIMARY KEY,
        seats INTEGER NOT NULL,
        product TEXT,
        tenant TEXT,
        status TEXT NOT NULL CHECK (status IN ('active', 'suspended', 'revoked')),
        expires_at_ms INTEGER,
        lease_max_ms INTEGER NOT NULL,
        checkout_max_ms INTEGER NOT NULL,
        serial INTEGER NOT NULL DEFAULT 0,
        created_at_ms INTEGER NOT NULL
      ) STRICT;
      CREATE TABLE tokens (
        hash TEXT PRIMARY KEY,
        license TEXT NOT NULL REFERENCES licenses (id) ON DELETE CASCADE,
        created_at_ms INTEGER NOT NULL
      ) STRICT;
      CREATE TABLE leases (
        id TEXT PRIMARY KEY,
        license TEXT NOT NULL REFERENCES licenses (id) ON DELETE CASCADE,
        fingerprint TEXT NOT NULL,
        granted_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        offline INTEGER NOT NULL,
        UNIQUE (license, fingerprint)
      ) STRICT;
      CREATE INDEX leases_by_end ON leases (license, expires_at_ms);
      CREATE TABLE barred (
        license TEXT NOT NULL REFERENCES licenses (id) ON DELETE CASCADE,
        fingerprint TEXT NOT NULL,
        lease TEXT NOT NULL,
        PRIMARY KEY (license, fingerprint)
      ) STRICT;
      CREATE TABLE revocations (
        license TEXT NOT NULL REFERENCES licenses (id) ON DELETE CASCADE,
        serial INTEGER NOT NULL,
        lease TEXT,
        code TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (license, serial)
      ) STRICT;
      CREATE TABLE log (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        license TEXT,
        lease TEXT,
        detail TEXT NOT NULL
      ) STRICT;
    `);
  },
];
