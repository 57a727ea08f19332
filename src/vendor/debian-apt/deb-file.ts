// Looks into a downloaded .deb: is it one, and is it the package the index promised. deb(5).
import { open } from 'node:fs/promises';
import { printable } from '../../base/printable.ts';
import { tryCommand } from '../../base/run-command.ts';
import { VendorError } from '../errors.ts';
import { readStanzas } from './stanzas.ts';

const AR_MAGIC = '!<arch>\n';

export type DebIdentity = { readonly name: string; readonly version: string; readonly arch: string };

async function hasArMagic(path: string): Promise<boolean> {
  const file = await open(path, 'r');
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(AR_MAGIC.length), 0, AR_MAGIC.length, 0);
    return buffer.toString('latin1', 0, bytesRead) === AR_MAGIC;
  } finally {
    await file.close();
  }
}

/** Throws VendorError `vendor-ill/wrong-software` unless the file is the package it should be. */
export async function inspectDeb(path: string, expected: DebIdentity): Promise<void> {
  const what = `${expected.name} ${expected.version} (${expected.arch})`;
  const wrong = (found: string): VendorError =>
    new VendorError('vendor-ill/wrong-software', `the artifact of ${what} is ${found}`, {
      next: 'tell the vendor: its signed index and its package disagree',
    });
  if (!(await hasArMagic(path))) throw wrong('no Debian package');
  const shown = await tryCommand(['dpkg-deb', '--field', path, 'Package', 'Version', 'Architecture']);
  if (shown.exitCode !== 0) throw wrong(`unreadable: ${printable(shown.stderr)}`);
  const [control] = readStanzas(shown.stdout, what);
  const [name, version, arch] = ['package', 'version', 'architecture'].map((field) => control?.get(field));
  if (name === expected.name && version === expected.version && arch === expected.arch) return;
  throw wrong(printable(`${name} ${version} (${arch})`));
}
