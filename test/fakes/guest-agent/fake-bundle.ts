// Tars, drives and manifests for tests, as real bytes.
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { digestOf } from '../../../src/base/digest.ts';
import type { Digest } from '../../../src/base/digest-text.ts';
import type { Manifest, ManifestItem } from '../../../src/model/manifest.ts';
import { MANIFEST_FORMAT } from '../../../src/model/manifest.ts';
import { PLAN, RUN, VM } from './fake-host.ts';

export type TarPart = {
  readonly name: string;
  readonly type?: string;
  readonly content?: string | Uint8Array;
  readonly target?: string;
  readonly mode?: number;
  /** Replaces the size field's text. */
  readonly sizeField?: string;
  /** Spoils the checksum. */
  readonly isSpoiled?: boolean;
};

/** A tar (ustar) of the given parts, one header per part, names up to 100 bytes; nothing is checked. */
export function makeTar(parts: readonly TarPart[]): Buffer {
  const blocks: Buffer[] = [];
  for (const part of parts) {
    const content = Buffer.from(part.content ?? '');
    blocks.push(tarHeader(part, content.length), content, Buffer.alloc((512 - (content.length % 512)) % 512));
  }
  return Buffer.concat([...blocks, Buffer.alloc(1024)]);
}

function tarHeader(part: TarPart, sizeBytes: number): Buffer {
  const header = Buffer.alloc(512);
  const octal = (value: number, width: number) => value.toString(8).padStart(width, '0');
  header.write(part.name, 0, 100);
  header.write(octal(part.mode ?? 0o755, 7), 100);
  header.write(octal(0, 7), 108);
  header.write(octal(0, 7), 116);
  header.write(part.sizeField ?? octal(sizeBytes, 11), 124);
  header.write(octal(0, 11), 136);
  header.write(part.type ?? '0', 156);
  header.write(part.target ?? '', 157, 100);
  header.write('ustar\u000000', 257);
  header.fill(' ', 148, 156);
  const sum = header.reduce((total, byte) => total + byte, part.isSpoiled === true ? 1 : 0);
  header.write(`${octal(sum, 6)}\u0000 `, 148);
  return header;
}

/** A pax header for the part that follows. */
export function paxPart(fields: Readonly<Record<string, string>>): TarPart {
  const records = Object.entries(fields).map(([key, value]) => {
    const rest = Buffer.byteLength(` ${key}=${value}\n`);
    let length = rest + 1;
    while (String(length).length + rest !== length) length += 1;
    return `${length} ${key}=${value}\n`;
  });
  return { name: 'PaxHeaders/x', type: 'x', content: records.join('') };
}

export type DriveItem = {
  readonly item: Partial<ManifestItem> & Pick<ManifestItem, 'product' | 'version' | 'install'>;
  readonly content: Uint8Array;
};

/** Writes a drive's folder: packages and manifest. Returns the manifest's digest. */
export function writeDrive(
  folder: string,
  items: readonly DriveItem[],
  overrides: Partial<Manifest> = {},
): { readonly manifestDigest: Digest; readonly manifest: Manifest } {
  const manifest: Manifest = {
    format: MANIFEST_FORMAT,
    vm: overrides.vm ?? vmId(),
    run: RUN,
    planDigest: PLAN,
    items: items.map(({ item, content }) => writeItem(folder, item, content)),
    extraFiles: [],
    ...overrides,
  };
  const text = JSON.stringify(manifest);
  writeFileSync(`${folder}/manifest.json`, text);
  return { manifestDigest: digestOf(text), manifest };
}

/** The cast holds: VM is of the form of a VM id. */
function vmId(): Manifest['vm'] {
  return VM as Manifest['vm'];
}

function writeItem(folder: string, item: DriveItem['item'], content: Uint8Array): ManifestItem {
  const extension = item.install.action === 'debian-package' ? 'deb' : 'bin';
  const path = `/packages/${item.product}-${item.version}.${extension}`;
  mkdirSync(dirname(`${folder}${path}`), { recursive: true });
  writeFileSync(`${folder}${path}`, content);
  const ecosystem = { bundle: 'bundle', 'debian-package': 'debian', agent: 'agent' } as const;
  return {
    id: `${ecosystem[item.install.action]}/${item.product}`,
    ecosystem: ecosystem[item.install.action],
    files: [{ path, digest: digestOf(content), sizeBytes: content.length }],
    ...item,
  };
}
