// Holds the hand-written pages against the code they describe.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ERROR_FAMILIES } from '../src/base/errors.ts';
import { STATE_DEADLINES_MS } from '../src/base/limits.ts';
import { DEFAULT_POLICY } from '../src/model/policy.ts';
import { SAMPLE_SPEC } from '../test/fakes/service.ts';
import { breakGlassCommands } from './break-glass.ts';
import { parseConfigText } from './config.ts';
import { ConfigFileSchema, FilePolicySchema } from './config-schema.ts';
import { fileOfPolicy } from './policy-words.ts';
import { readVmSpec } from './spec-file.ts';

const page = async (path: string): Promise<string> =>
  await readFile(new URL(`../docs/${path}`, import.meta.url), 'utf8');
const tomlOf = (text: string): string =>
  /```toml\n([\s\S]*?)```/.exec(text)?.[1] ?? assert.fail('the page has no TOML');

test('the configuration page names every key, and its example is a correct file', async () => {
  const text = await page('configuration.md');
  const tables = ['policy', 'groups', 'licenses', 'network', 'deadlines', 'uids'];
  const keys = Object.keys(ConfigFileSchema.properties).filter((key) => !tables.includes(key));
  const deadlines = Object.keys(STATE_DEADLINES_MS).map((state) => `deadlines.${state}`);
  const policy = Object.entries(FilePolicySchema.properties)
    .filter(([, schema]) => !('deprecated' in schema))
    .map(([key]) => `policy.${key}`);
  const licenses = ['leaseDuration', 'grace', 'idleRelease', 'poll'].map((key) => `licenses.${key}`);
  for (const key of [
    ...keys,
    ...policy,
    ...deadlines,
    ...licenses,
    'groups.NAME.tenant',
    'network.bridge',
    'uids.first',
    'groups.NAME.policy',
  ])
    assert.ok(text.includes(`\`${key}\``), key);
  const example = await parseConfigText(tomlOf(text), 'configuration.md');
  assert.equal(example.vendors?.length, 2);
});

test('the policy page explains every key with what is built in, and its example is a correct file', async () => {
  const text = await page('policy.md');
  for (const [key, value] of Object.entries(fileOfPolicy(DEFAULT_POLICY))) {
    const builtIn = Array.isArray(value) ? '[]' : String(value);
    assert.ok(text.includes(`| \`${key}\` | \`${builtIn}\` |`), `${key} ${builtIn}`);
  }
  const { groups } = await parseConfigText(tomlOf(text), 'policy.md');
  assert.deepEqual(groups?.web?.vms, ['web-*', 'shop']);
});

test('the example of the VM spec page is a correct spec', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-docs-'));
  const path = join(folder, 'web.toml');
  await writeFile(path, tomlOf(await page('vm-spec.md')));
  assert.equal((await readVmSpec(path, 'none')).vm, 'web');
  await rm(folder, { recursive: true });
});

test('the API page has every family of errors with its status and exit code', async () => {
  const rows = (await page('api.md')).split('\n').filter((line) => line.startsWith('| `'));
  for (const [family, { httpStatus, exitCode }] of Object.entries(ERROR_FAMILIES)) {
    const row = rows.find((line) => line.includes(`\`${family}\``)) ?? assert.fail(family);
    assert.match(row, new RegExp(`\\| ${exitCode} \\|$`), family);
    if (family !== 'daemon-down') assert.ok(row.includes(`| ${httpStatus} |`), family);
  }
});

test('the break-glass page shows the commands as the doctor prints them', async () => {
  const text = await page('break-glass.md');
  const [stop = '', fence = '', monitor = ''] = breakGlassCommands({ ...SAMPLE_SPEC }, '/run/pratique');
  assert.ok(text.includes(stop), stop);
  assert.ok(text.includes(fence.replace(/"pq\w+"/, '"pq0123456789abc"')), fence);
  assert.ok(text.includes(monitor.slice(monitor.indexOf('perl'), monitor.lastIndexOf(' '))), monitor);
});
