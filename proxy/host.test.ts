// A real host over an empty data folder: what it refuses to forget.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { silentLog } from '../src/base/log.ts';
import { SAMPLE_SPEC } from '../test/fakes/service.ts';
import { loadConfig } from './config.ts';
import { startHost } from './host.ts';

test('a VM whose accepted update is not in its disk yet is not removed; once that is settled it is [X5]', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-host-'));
  const env = { HOME: folder, PRATIQUE_DATA: join(folder, 'data'), PRATIQUE_RUN: join(folder, 'run') };
  const { config } = await loadConfig({ env, uid: 1 });
  const host = await startHost({ config, log: silentLog, clock: systemClock });
  try {
    const { service } = host;
    await service.addVm(SAMPLE_SPEC, { inspectDisk: false });
    const overlay = join(folder, 'data/overlays', SAMPLE_SPEC.vm);
    await mkdir(overlay, { recursive: true });
    const base = { path: join(folder, 'no-such-disk.raw'), format: 'raw' };
    const disk = { node: 'disk0', overlayNode: 'overlay0', base, file: join(overlay, 'disk0.qcow2') };
    const record = { format: 'pratique.overlay/1', vm: SAMPLE_SPEC.vm, fate: 'accepted', uid: null, disks: [disk] };
    await writeFile(join(overlay, 'overlay.json'), JSON.stringify(record));
    await assert.rejects(service.removeVm(SAMPLE_SPEC.vm), {
      code: 'conflict/overlay',
      next: new RegExp(`remove ${overlay} first`),
    });
    assert.deepEqual(JSON.parse(await readFile(join(overlay, 'overlay.json'), 'utf8')), record);
    assert.equal((await service.listVms()).length, 1);
    assert.equal((await service.showVm(SAMPLE_SPEC.vm)).state, 'off');
    await rm(overlay, { recursive: true });
    await service.removeVm(SAMPLE_SPEC.vm);
    assert.equal((await service.listVms()).length, 0);
  } finally {
    await host.close();
    await rm(folder, { recursive: true, force: true });
  }
});
