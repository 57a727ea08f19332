// Paths of a manifest cannot leave their folder.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Check } from 'typebox/value';
import { ManifestFileSchema } from './manifest.ts';

const isPath = (path: string): boolean => Check(ManifestFileSchema, { path, digest: 'a'.repeat(64), sizeBytes: 1 });

test('a manifest names files in the four folders of the drive only [A4]', () => {
  for (const path of ['/packages/00-a.deb', '/apt/dists/x/InRelease', '/config/a..b', '/agent/.hidden'])
    assert.ok(isPath(path), path);
  const climbing = ['/apt/../manifest.json', '/apt/..', '/packages/a/../../b', '/packages/./a', '/packages/a/..'];
  const elsewhere = ['/manifest.json', 'packages/a', '/etc/passwd', '/packages/', '/packages/a\nb', '/packages/a\\b'];
  for (const path of [...climbing, ...elsewhere]) assert.ok(!isPath(path), path);
});
