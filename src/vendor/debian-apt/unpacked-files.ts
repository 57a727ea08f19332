// The unpacked package indexes, open for reading: a place in one of them becomes a package.
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { printable } from '../../base/printable.ts';
import type { DatabaseSync } from '../../base/sqlite.ts';
import { VendorError } from '../errors.ts';
import { type OfferedPackage, readPackage } from './packages-file.ts';

export type UnpackedFiles = {
  /**
   * The package at a row of `packages`. Throws VendorError `vendor-ill/malformed` when it is described wrongly,
   * `host-fault/file` when the disk does not give it back.
   */
  readonly read: (row: Record<string, unknown>) => OfferedPackage;
  /** Suites of which a file is not there as it was written. */
  readonly lostSuites: () => readonly string[];
  /** Opens what the database names now, and lets go of the rest. */
  readonly reopen: () => void;
  readonly close: () => void;
};

type Unpacked = { readonly descriptor: number; readonly suite: string; readonly component: string };

/** Undefined when it is not there, or not as long as it was: a disk that lost it in a power cut, or a restored backup. */
function openWhole(path: string, sizeBytes: number): number | undefined {
  let descriptor: number;
  try {
    descriptor = openSync(path, 'r');
  } catch {
    return undefined;
  }
  if (fstatSync(descriptor).size === sizeBytes) return descriptor;
  closeSync(descriptor);
  return undefined;
}

function bytesOf(file: Unpacked, start: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  if (readSync(file.descriptor, bytes, 0, length, start) === length) return bytes;
  throw new VendorError('host-fault/file', `an unpacked index of ${file.suite} ends before its packages do`, {
    next: 'restart Pratique, then run `pratique vendor check`: the index is unpacked again',
  });
}

/** Opens the files that the table `unpacked` names. */
export function openUnpackedFiles(db: DatabaseSync, folder: string): UnpackedFiles {
  const rows = db.prepare('SELECT * FROM unpacked');
  const files = new Map<number, Unpacked>();
  const lost = new Set<string>();
  const close = (): void => {
    for (const { descriptor } of files.values()) closeSync(descriptor);
    files.clear();
    lost.clear();
  };
  const reopen = (): void => {
    close();
    for (const row of rows.all()) {
      const suite = String(row.suite);
      const descriptor = openWhole(join(folder, String(row.file)), Number(row.size_bytes));
      if (descriptor === undefined) lost.add(suite);
      else files.set(Number(row.id), { descriptor, suite, component: String(row.component) });
    }
  };
  reopen();
  return {
    read: (row) => {
      const file = files.get(Number(row.unpacked));
      if (file === undefined) throw new VendorError('host-fault/file', 'an unpacked package index is gone');
      const bytes = bytesOf(file, Number(row.start), Number(row.length));
      const found = readPackage(bytes, file.suite, file.component);
      if (found.name === row.name) return found;
      throw new VendorError(
        'vendor-ill/malformed',
        `the index of ${file.suite} names one package twice, ${printable(found.name)} and ${printable(String(row.name))}`,
      );
    },
    lostSuites: () => [...lost],
    reopen,
    close,
  };
}
