// Configuration on the drives of unit tests, as real bytes, and a guest that has users and a name.
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { digestOf } from '../../../src/base/digest.ts';
import { canonicalJson, type Digest } from '../../../src/base/digest-text.ts';
import type { ConfigDriveFile, GuestConfigItem } from '../../../src/model/guest-config.ts';
import type { Manifest } from '../../../src/model/manifest.ts';
import type { ItemResult } from '../../../src/model/result.ts';
import { type DriveItem, writeDrive } from './fake-bundle.ts';
import type { FakeGuest } from './fake-guest.ts';
import { asDigest, RUN, VM } from './fake-host.ts';

/** What a drive carries beside its software. */
export type ConfigOffer = {
  readonly items?: readonly GuestConfigItem[];
  readonly removed?: readonly string[];
  readonly software?: readonly DriveItem[];
  /** Of the plan: a set is known by it. */
  readonly plan?: Digest;
  /** Changes a file of the drive behind the manifest's back. */
  readonly tamper?: (file: ConfigDriveFile) => object;
};

/** Users, a host name and the folders of a small system; every file of it is ours, whoever runs the tests. */
export function furnish(guest: FakeGuest): void {
  const [uid, gid] = [process.getuid?.() ?? 0, process.getgid?.() ?? 0];
  write(guest, 'etc/passwd', `root:x:${uid}:${gid}:root:/root:/bin/sh\nops:x:${uid}:${gid}::/home/ops:/bin/sh\n`);
  write(guest, 'etc/group', `root:x:${gid}:\nops:x:${gid}:\n`);
  write(guest, 'etc/hosts', '127.0.0.1 localhost\n');
  write(guest, 'etc/hostname', 'before\n');
  write(guest, 'proc/sys/kernel/hostname', 'before\n');
  mkdirSync(join(guest.folder, 'home/ops'), { recursive: true });
}

/** Puts a file into the guest. */
export function write(guest: FakeGuest, path: string, content: string | Uint8Array): void {
  mkdirSync(dirname(join(guest.folder, path)), { recursive: true });
  writeFileSync(join(guest.folder, path), content);
}

/** A file of the guest; null if there is none. */
export function read(guest: FakeGuest, path: string): string | null {
  return statSync(join(guest.folder, path), { throwIfNoEntry: false }) === undefined
    ? null
    : readFileSync(join(guest.folder, path), 'utf8');
}

/** An item that sets one file. */
export function fileItem(
  item: string,
  path: string,
  content: string,
  more: Partial<GuestConfigItem> = {},
): GuestConfigItem {
  return { item, version: '1', setting: { kind: 'file', file: { path, content } }, ...more };
}

/** Offers a drive with configuration. */
export function offerConfig(guest: FakeGuest, offer: ConfigOffer): void {
  const { items = [], removed = [], software = [], plan = asDigest('2'.repeat(64)), tamper } = offer;
  const folder = guest.attachDrive('vdb');
  const config = items.map((item, index) => {
    const path = `/config/${index + 1}-${item.item}.json`;
    // The casts hold: tests use ids of the right form.
    const file: ConfigDriveFile = {
      format: 'pratique.config/1',
      vm: VM as Manifest['vm'],
      run: RUN,
      salt: asDigest('5'.repeat(64)),
      item,
    };
    const text = canonicalJson(tamper === undefined ? file : tamper(file));
    mkdirSync(join(folder, 'config'), { recursive: true });
    writeFileSync(join(folder, path), text);
    return { item: item.item, version: item.version, path, digest: digestOf(text), sizeBytes: Buffer.byteLength(text) };
  });
  const { manifestDigest } = writeDrive(folder, software, {
    planDigest: plan,
    ...(config.length === 0 ? {} : { config }),
    ...(removed.length === 0 ? {} : { configRemoved: [...removed] }),
  });
  guest.host.send({ type: 'offer', run: RUN, planDigest: plan, manifestDigest, label: 'PRATIQUE' });
}

/** Offers it and waits for the results, as `item outcome code`. */
export async function apply(guest: FakeGuest, offer: ConfigOffer): Promise<readonly string[]> {
  offerConfig(guest, offer);
  const { results } = await guest.host.take('installed');
  return results.map(told);
}

/** A result in a line. */
export const told = ({ item, outcome, code }: ItemResult): string =>
  [item, outcome, ...(code === undefined ? [] : [code])].join(' ');

/** A plan of its own for each set. */
export const plan = (digit: string): Digest => asDigest(digit.repeat(64));
