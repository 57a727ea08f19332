// Changelogs as packages have them, and as nobody should.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../base/clock.ts';
import { parseChangelog, readChangelog } from './changelog.ts';

const entry = (version: string, text: string, source = 'curl'): string =>
  `${source} (${version}) bookworm-security; urgency=high\n\n  * ${text}\n\n -- A <a@example.org>  Sat, 10 Jan 2026 10:00:00 +0000\n\n`;

test('each version names the holes of its own entry, each once', () => {
  const text =
    entry('2-1', 'Fix CVE-2024-0001 and CVE-2024-0001, CVE-2023-12345') +
    entry('1-1', 'No hole') +
    entry('1-0', 'CVE-2020-1111');
  assert.deepEqual(parseChangelog(text), {
    source: 'curl',
    entries: [
      { version: '2-1', advisories: ['CVE-2023-12345', 'CVE-2024-0001'] },
      { version: '1-0', advisories: ['CVE-2020-1111'] },
    ],
  });
});

test('entries of another source, and of what is no version, are passed over', () => {
  const text = entry('2', 'CVE-2024-0002') + entry('1', 'CVE-2024-0001', 'other') + entry('1_0', 'CVE-2024-0003');
  assert.deepEqual(parseChangelog(text)?.entries, [{ version: '2', advisories: ['CVE-2024-0002'] }]);
});

test('what is no changelog is none, and numbers that are no advisories are none', () => {
  assert.equal(parseChangelog('CVE-2024-0001\n'), undefined);
  assert.equal(parseChangelog(''), undefined);
  assert.deepEqual(parseChangelog(entry('1', 'CVE-24-1 CVE-2024-123 CVE-2024-12345678 xCVE-2024-0001'))?.entries, []);
});

test('a changelog that names holes without end is cut off', () => {
  const many = Array.from({ length: 30_000 }, (_, number) => `CVE-2024-${10_000 + number}`).join('\n  ');
  assert.equal(parseChangelog(entry('1', many))?.entries[0]?.advisories.length, 20_000);
});

test('a file that is no package is an error, not a changelog', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-changelog-'));
  t.after(() => rm(folder, { recursive: true }));
  const path = join(folder, 'x.deb');
  await writeFile(path, '!<arch>\nbut nothing behind it');
  assert.equal(await readChangelog(path, 'x', systemClock).catch(() => undefined), undefined);
});
