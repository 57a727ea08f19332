// Debian's kernel names, as its archive has them.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareKernelReleases, kernelFlavourOf, kernelReleaseOf } from './kernel-release.ts';

test('only a package that holds a kernel has a release', () => {
  assert.equal(kernelReleaseOf('linux-image-6.1.0-37-cloud-amd64'), '6.1.0-37-cloud-amd64');
  for (const other of ['linux-image-amd64', 'linux-image-6.1.0-37-amd64-dbg', 'linux-headers-6.1.0-37-amd64', 'jq'])
    assert.equal(kernelReleaseOf(other), null, other);
});

test('the flavour of a release is what follows its version', () => {
  const flavours = {
    '6.1.0-37-amd64': 'amd64',
    '6.1.0-37-cloud-amd64': 'cloud-amd64',
    '6.12.48+deb13-rt-arm64': 'rt-arm64',
    '6.1.0-0.deb11.21-amd64': 'amd64',
  };
  for (const [release, flavour] of Object.entries(flavours)) assert.equal(kernelFlavourOf(release), flavour);
});

test('releases are ordered by their numbers', () => {
  const ordered = ['5.10.0-28-amd64', '6.1.0-9-amd64', '6.1.0-37-amd64', '6.1.0-41-amd64', '6.12.48+deb13-amd64'];
  for (const [index, release] of ordered.entries()) {
    for (const [otherIndex, other] of ordered.entries())
      assert.equal(
        Math.sign(compareKernelReleases(release, other)),
        Math.sign(index - otherIndex),
        `${release} ${other}`,
      );
  }
});
