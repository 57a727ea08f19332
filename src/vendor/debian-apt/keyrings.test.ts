// The forms in which apt's sources name the keys that may sign.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allowedSignatures, dearmor, keyringFiles, parseSignedBy } from './keyrings.ts';

const [PRIMARY, SUBKEY] = ['A'.repeat(40), 'B'.repeat(40)];

test('files and fingerprints are told apart, with commas and spaces', () => {
  assert.deepEqual(parseSignedBy(`/a.gpg,/b.asc ${PRIMARY.toLowerCase()}`), {
    paths: ['/a.gpg', '/b.asc'],
    embedded: [],
    fingerprints: [PRIMARY],
  });
  assert.deepEqual(parseSignedBy(''), { paths: [], embedded: [], fingerprints: [] });
});

test('a mistyped fingerprint allows no key, instead of every one [X3]', () => {
  const signatures = [{ key: SUBKEY, primary: PRIMARY }];
  for (const mistyped of [PRIMARY.slice(1), `0x${PRIMARY}`, 'keyring.gpg', `/a.gpg ${PRIMARY.slice(1)}`])
    assert.deepEqual(allowedSignatures(signatures, parseSignedBy(mistyped)), [], mistyped);
  assert.deepEqual(allowedSignatures(signatures, parseSignedBy(`/a.gpg ${PRIMARY}`)), signatures);
});

test('a fingerprint allows the key and its subkeys, with an exclamation mark that key only (sources.list(5)) [X3]', () => {
  const signature = { key: SUBKEY, primary: PRIMARY };
  const allows = (...fingerprints: readonly string[]) =>
    allowedSignatures([signature], { paths: [], embedded: [], fingerprints }).length === 1;
  assert.equal(allows(), true);
  assert.equal(allows(PRIMARY), true);
  assert.equal(allows(SUBKEY), true);
  assert.equal(allows(`${SUBKEY}!`), true);
  assert.equal(allows(`${PRIMARY}!`), false);
  assert.equal(allows('C'.repeat(40)), false);
});

test('armored keys become binary, several in one file one after the other, headers and checksums left out', () => {
  const block = (base64: string) =>
    `-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: x\n\n${base64}\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n`;
  assert.deepEqual([...(dearmor(`${block('AAEC')}between\n${block('AwQ=')}`) ?? [])], [0, 1, 2, 3, 4]);
  assert.equal(dearmor('no key'), undefined);
});

test('a host without any key is told what to install', async () => {
  await assert.rejects(keyringFiles({ paths: [], embedded: [], fingerprints: [] }, '/nowhere'), {
    code: 'host-unfit/no-keyring',
    next: /debian-archive-keyring/,
  });
});
