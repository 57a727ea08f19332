// What a VM leaves in the run folder, and what is left of that when it is removed.
import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { digestOf } from '../../base/digest.ts';
import type { VmId } from '../../model/ids.ts';
import { forgetVm, type Launch, recordLaunch, runFiles } from './run-files.ts';

const VM = 'web' as VmId; // It has the form of a VmId.
const LAUNCH: Launch = {
  format: 'pratique.launch/1',
  vm: VM,
  specDigest: digestOf('spec'),
  hostBoot: 'boot',
  accelerator: null,
  uid: null,
  mark: 'pq-mark',
  launchedAtMs: 1,
};

test('a VM that is removed leaves no folder behind, and one that never ran needs none [A11]', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-run-'));
  t.after(async () => await rm(folder, { recursive: true }));
  const files = runFiles(folder, VM);
  await forgetVm(files);
  await recordLaunch(files, LAUNCH);
  await writeFile(files.logFile, 'its last words');
  assert.deepEqual(await readdir(join(folder, 'vm')), [VM]);
  await forgetVm(files);
  assert.deepEqual(await readdir(join(folder, 'vm')), []);
});

test('what somebody else put into the folder of a VM stays', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-run-'));
  t.after(async () => await rm(folder, { recursive: true }));
  const files = runFiles(folder, VM);
  await recordLaunch(files, LAUNCH);
  await writeFile(join(files.folder, 'theirs'), '');
  await forgetVm(files);
  assert.deepEqual(await readdir(files.folder), ['theirs']);
});
