// Writes a file so that after a power cut it is the old one or the new one, never a piece; makes folders that stay.
import { mkdir, open, rename } from 'node:fs/promises';
import { dirname } from 'node:path';

/**
 * Makes a folder, in one that is there, which survives a power cut: what is durable below it is lost with its name. One that an
 * earlier process made may not be durable either, so it is made so again. Throws the file system's error.
 */
export async function makeFolderDurably(path: string, mode: number): Promise<void> {
  await mkdir(path, { recursive: true, mode });
  await syncFolder(dirname(path));
}

/** Makes a rename or creation in this folder survive a power cut. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Temporary file beside the target, fsync, rename, fsync of the folder. Throws the file system's error and leaves the old file. */
export async function writeDurably(path: string, content: Uint8Array | string, mode = 0o600): Promise<void> {
  const temporary = `${path}.new`;
  const handle = await open(temporary, 'w', mode);
  try {
    await handle.writeFile(content);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(temporary, path);
  await syncFolder(dirname(path));
}
