// Vendors' expiry and age on a host whose wall clock is set back, jumps ahead, and is corrected.
import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { MAIN, makeArchiveRig, SECURITY } from '../../test/fakes/debian-archive-rig.ts';
import { startHttpServer } from '../../test/fakes/http-server.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { makeHttpFetch } from '../base/http-fetch.ts';
import { TRUST_SETTLE_MS } from '../base/limits.ts';
import { silentLog } from '../base/log.ts';
import { openTrustTime } from '../base/trust-time.ts';
import { makeTufVendor } from './tuf/index.ts';
import { publishFolder } from './tuf/publish.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const YEAR_MS = 365 * DAY_MS;

/** A machine whose wall clock can be set, and what it is sure of. */
async function makeMachine(t: TestContext, startMs: number) {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-set-back-'));
  t.after(async () => await rm(folder, { recursive: true, force: true }));
  const at = { wallMs: startMs, upMs: 0 };
  const wall: Clock = { ...systemClock, nowMs: () => at.wallMs, uptimeMs: () => at.upMs };
  const path = join(folder, 'trust-time.json');
  const time = await openTrustTime({ path, clock: wall, log: silentLog, bootId: async () => 'one' });
  return {
    folder,
    at,
    time,
    clock: { ...wall, trustedMs: time.nowMs },
    /** Time goes by, and the daemon looks at it as often as it does. */
    pass: (ms: number) => {
      for (let left = ms; left > 0; left -= HOUR_MS) {
        at.wallMs += Math.min(left, HOUR_MS);
        at.upMs += Math.min(left, HOUR_MS);
        time.nowMs();
      }
    },
  };
}

test('Debian: what has expired stays expired when the clock is set back, and what is kept goes on growing old [X3]', async (t) => {
  const rig = await makeArchiveRig();
  t.after(async () => await rig.close());
  await rig.publish(MAIN, SECURITY);
  const { vendor, clock } = await rig.makeRig(t);
  const { at, time, pass } = await makeMachine(t, clock.wallMs);
  Object.assign(clock, { nowMs: () => at.wallMs, trustedMs: time.nowMs });
  assert.equal((await vendor.refresh({})).isFresh, true);
  pass(23 * HOUR_MS);
  assert.equal(vendor.status().isFresh, true);
  at.wallMs -= YEAR_MS;
  assert.equal(vendor.status().isFresh, true, 'nothing is lost by it either');
  pass(2 * HOUR_MS);
  assert.equal(vendor.status().isFresh, false, 'older than a day, by the uptime of the machine');
  pass(7 * DAY_MS);
  await assert.rejects(vendor.refresh({}), { code: 'vendor-ill/expired' });
  // The control: the wall clock alone would believe all of it.
  Object.assign(clock, { trustedMs: undefined });
  at.wallMs = Date.parse('Sat, 10 Jan 2026 12:30:00 UTC');
  assert.equal((await vendor.refresh({})).isFresh, true);
});

test('TUF: a timestamp that has expired is not believed again when the clock is set back; years ahead lock nobody out for good [X3]', async (t) => {
  const machine = await makeMachine(t, systemClock.nowMs());
  const { folder, at, time, pass, clock } = machine;
  const wallOf = { ...systemClock, nowMs: () => at.wallMs };
  const web = join(folder, 'web');
  const source = join(folder, 'release');
  await mkdir(web);
  await mkdir(join(source, 'files'), { recursive: true });
  await writeFile(join(source, 'files/x'), 'x');
  const install = { action: 'bundle', prefix: '/opt/x' };
  await writeFile(
    join(source, 'release.json'),
    JSON.stringify({ product: 'x', version: '1.0.0', kind: 'fix', install }),
  );
  const publish = async () =>
    await publishFolder({ source, repository: web, keys: join(folder, 'keys'), clock: wallOf });
  await publish();
  await copyFile(join(web, 'metadata/1.root.json'), join(folder, 'root.json'));
  const server = await startHttpServer(web);
  const vendor = await makeTufVendor({
    name: 'acme',
    metadataUrl: `${server.url}/metadata`,
    targetsUrl: `${server.url}/targets`,
    rootPath: join(folder, 'root.json'),
    folder: join(folder, 'state'),
    http: makeHttpFetch({ clock: systemClock }),
    clock,
    metadataAgeMaxMs: Number.MAX_SAFE_INTEGER,
    log: silentLog,
  });
  t.after(async () => {
    await vendor.close();
    await server.close();
  });
  assert.equal((await vendor.refresh({})).isFresh, true);
  // A jump of ten years that is corrected soon: nothing is believed meanwhile, everything afterwards.
  at.wallMs += 10 * YEAR_MS;
  assert.equal(vendor.status().isFresh, false);
  at.wallMs -= 10 * YEAR_MS;
  assert.equal(vendor.status().isFresh, true);
  // The timestamp's thirty days pass, and somebody sets the clock back to when it was young.
  pass(31 * DAY_MS);
  assert.equal(vendor.status().isFresh, false);
  at.wallMs -= 31 * DAY_MS;
  assert.equal(vendor.status().isFresh, false);
  await assert.rejects(vendor.refresh({}));
  at.wallMs += 31 * DAY_MS;
  // A clock that stood years ahead for long takes an operator's word once it is right again.
  at.wallMs += 10 * YEAR_MS;
  time.nowMs();
  pass(TRUST_SETTLE_MS);
  at.wallMs -= 10 * YEAR_MS;
  assert.ok(time.behindMs() > 9 * YEAR_MS);
  await publish();
  await assert.rejects(vendor.refresh({}));
  await time.accept();
  assert.equal((await vendor.refresh({})).isFresh, true);
});
