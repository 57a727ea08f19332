// Writes an initramfs archive in the newc form of cpio: same entries, same bytes (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

const FOLDER_MODE = 0o040755;
const FILE_MODE = 0o100644;
const PROGRAM_MODE = 0o100755;

export type CpioEntry =
  | { readonly kind: 'folder'; readonly path: string }
  | { readonly kind: 'file' | 'program'; readonly path: string; readonly content: Uint8Array };

/** The archive's bytes. Parents must come before their children; owner is root, time zero. */
export function makeCpio(entries: readonly CpioEntry[]): Uint8Array {
  const nothing = new Uint8Array(0);
  const records = entries.map((entry, index) => {
    if (entry.kind === 'folder') return makeRecord(index + 1, entry.path, FOLDER_MODE, nothing);
    return makeRecord(index + 1, entry.path, entry.kind === 'program' ? PROGRAM_MODE : FILE_MODE, entry.content);
  });
  return Buffer.concat([...records, makeRecord(0, 'TRAILER!!!', 0, nothing)]);
}

function makeRecord(inode: number, path: string, mode: number, content: Uint8Array): Uint8Array {
  const name = Buffer.from(`${path}\0`);
  const links = mode === FOLDER_MODE ? 2 : 1;
  const fields = [inode, mode, 0, 0, links, 0, content.length, 0, 0, 0, 0, name.length, 0];
  const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`);
  return Buffer.concat([padTo4(Buffer.concat([header, name])), padTo4(content)]);
}

function padTo4(bytes: Uint8Array): Uint8Array {
  return Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)]);
}
