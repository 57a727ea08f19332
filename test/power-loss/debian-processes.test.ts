// The agent, apt and dpkg killed together at many moments of one install, in a real Debian root without a VM: what the next start finds
// is what a power cut leaves of a guest whose disk lost nothing. Quicker by far than VMs, so that many moments can be had.
// debian-install.test.ts does it to whole VMs. Seeded; a fifth of the moments by default, all with PRATIQUE_TEST_FULL=1.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { cp } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import { makeOffering } from '../e2e/debian-offering.ts';
import type { DebianRoot } from '../e2e/debian-root.ts';
import { type DebianScene, openDebianScene, SCENE_SUITE as SUITE } from '../e2e/debian-scene.ts';
import type { DebianArchive, PackageSpec } from '../fakes/debian-archive.ts';

const MOMENTS = 20;
const SAMPLE = 4;
const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const seed = Number(process.env.PRATIQUE_TEST_SEED ?? randomInt(1, 2 ** 31));
const NAMES = ['one', 'two', 'three', 'four'];

let scene: DebianScene | null = null;
let scratch: string;
let archive: DebianArchive;
let vendor: Vendor;
let root: DebianRoot;
let version = 0;
let installMs = 0;

/** Four packages that need each other in exactly their version, with files, scripts and a trigger of the C library. */
function packages(of: number): readonly PackageSpec[] {
  return NAMES.map((name, index) => {
    const files: Record<string, string> = {
      'DEBIAN/preinst': '#!/bin/sh\nsleep 0.1\n',
      'DEBIAN/postinst': '#!/bin/sh\nsleep 0.1\nldconfig\n',
      'DEBIAN/triggers': 'activate-noawait ldconfig\n',
    };
    for (let file = 0; file < 50; file += 1) files[`usr/share/${name}/${file}`] = `${of}`.repeat(2_000);
    const next = NAMES[index + 1];
    return {
      name,
      version: `${of}`,
      ...(next === undefined ? {} : { fields: { Depends: `${next} (= ${of})` } }),
      files,
    };
  });
}

async function publish(): Promise<void> {
  version += 1;
  const date = new Date(systemClock.nowMs() - 3_600_000 + version * 60_000).toUTCString().replace('GMT', 'UTC');
  await archive.publish({ suite: SUITE, packages: packages(version), date });
  await vendor.refresh({});
}

/** The next version of all four on a drive, offered; nothing is waited for. */
async function offerNext(apt: 'fast' | 'vendor-verified') {
  await publish();
  root.host.send({ type: 'ask-inventory' });
  const { inventory } = await root.host.take('inventory', 60_000);
  const offering = await makeOffering({ vendor, inventory, apt, folder: join(scratch, 'debs') });
  assert.equal(offering.items.length, NAMES.length);
  const { run, contents } = await root.writeDrive(offering);
  return { run, ...contents };
}

async function assertWhole(): Promise<void> {
  const wanted = Object.fromEntries(NAMES.map((name) => [name, `${version} installed`]));
  assert.deepEqual(await root.versions(...NAMES), wanted);
  assert.equal(await root.run('dpkg', '--audit'), '');
  assert.equal(await root.run('dpkg', '--verify', ...NAMES), '', 'every file is the one of its package');
}

before(async () => {
  scene = await openDebianScene();
  ({ scratch, archive, vendor, root } = scene);
  await publish();
  await cp(join(archive.folder, 'pool/main'), root.path('tmp/seed'), { recursive: true });
  await root.run('sh', '-c', 'dpkg -i /tmp/seed/*.deb');
  await root.start();
});
after(async () => await scene?.close());

test('positive control: undisturbed, both ways install the next version', async (t) => {
  for (const apt of ['fast', 'vendor-verified'] as const) {
    const { run, manifestDigest } = await offerNext(apt);
    const startMs = systemClock.monotonicMs();
    assert.ok('installed' in (await root.offer(run, manifestDigest)));
    installMs = systemClock.monotonicMs() - startMs;
    t.diagnostic(`${apt}: ${Math.round(installMs)} ms`);
    await assertWhole();
  }
  const moments = isFull ? MOMENTS : SAMPLE;
  t.diagnostic(`seed ${seed}, ${moments} of ${MOMENTS} moments${isFull ? '' : '; npm run test:full has all'}`);
});

/** A linear congruential generator (Numerical Recipes). */
let random = seed >>> 0;
function nextRandom(): number {
  random = (Math.imul(random, 1_664_525) + 1_013_904_223) >>> 0;
  return random / 2 ** 32;
}
nextRandom(); // The first number of a small seed is small.

const broken: string[] = [];
const count = isFull ? MOMENTS : SAMPLE;
for (let index = 0; index < count; index += 1) {
  const fraction = (index + nextRandom()) / count;
  const apt = index % 2 === 0 ? 'fast' : 'vendor-verified';
  test(`killed at ${Math.round(100 * fraction)} % (${apt}): the next start ends with the right versions, dpkg clean [X4]`, async () => {
    const { run, manifestDigest, manifest } = await offerNext(apt);
    root.host.send({ type: 'offer', run, planDigest: manifest.planDigest, manifestDigest, label: 'PRATIQUE' });
    await systemClock.sleep(fraction * installMs);
    await root.cutPower();
    if ((await root.run('dpkg', '--audit')) !== '') broken.push(`${Math.round(100 * fraction)} %`);
    await root.start();
    root.host.send({ type: 'offer', run, planDigest: manifest.planDigest, manifestDigest, label: 'PRATIQUE' });
    const { results } = await root.host.take('installed', 180_000);
    for (const { item, outcome, output } of results) assert.equal(outcome, 'installed', `${item}: ${output}`);
    await assertWhole();
  });
}

test('the kills fell into dpkg’s work', (t) => {
  t.diagnostic(`dpkg was broken off at ${broken.join(', ') || 'none'}`);
  if (isFull) assert.ok(broken.length > 0, 'none of the moments broke dpkg off, so this proved nothing');
});
