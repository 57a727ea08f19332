// dpkg's status file: states, holds and sources; and this machine's own file against dpkg-query, where there is one.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { readDpkgStatus } from './dpkg-status.ts';
import { nodePlatform } from './platform/node.ts';

function parse(text: string) {
  const folder = mkdtempSync(join(tmpdir(), 'pratique-dpkg-'));
  try {
    writeFileSync(join(folder, 'status'), text);
    return readDpkgStatus(nodePlatform(systemClock), join(folder, 'status'));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const stanza = (name: string, status: string, more = ''): string =>
  `Package: ${name}\nStatus: ${status}\nArchitecture: amd64\n${more}Version: 1.0-1\nDescription: x\n Package: no field\n .\n more\n`;

test('installed, held, half-way and removed packages are told apart', () => {
  const text = [
    stanza('good', 'install ok installed'),
    stanza('kept', 'hold ok installed'),
    stanza('half', 'install ok half-configured'),
    stanza('waits', 'install ok triggers-pending'),
    stanza('hurt', 'install reinstreq installed'),
    stanza('removed', 'deinstall ok config-files'),
    stanza('gone', 'purge ok not-installed'),
    'Package: no-version\nStatus: install ok installed\n',
  ].join('\n');
  const found = parse(text).map(({ product, state, held }) => [product, state, held ?? false]);
  assert.deepEqual(found, [
    ['good', 'installed', false],
    ['kept', 'installed', true],
    ['half', 'broken', false],
    ['waits', 'broken', false],
    ['hurt', 'broken', false],
  ]);
});

test('the source is given with its version, its own one where that differs', () => {
  const text = [
    stanza('libjq1', 'install ok installed', 'Source: jq\n'),
    stanza('libfoo1+b1', 'install ok installed', 'Source: foo (2:1.0-2)\n'),
  ].join('\n');
  assert.deepEqual(
    parse(text).map(({ source }) => source),
    ['jq 1.0-1', 'foo 2:1.0-2'],
  );
});

test('no file is an empty list, and a file without end is refused', () => {
  assert.deepEqual(readDpkgStatus(nodePlatform(systemClock), '/nonexistent/status'), []);
  assert.throws(() => parse(`Package: x\n${'y'.repeat(400_000)}`), /endless/);
  assert.deepEqual(parse(''), []);
});

test('characters and stanzas that lie across pieces are read whole', () => {
  const many = Array.from({ length: 2000 }, (_, index) =>
    stanza(`package-${index}`, 'install ok installed', `Maintainer: ${'ü😀'.repeat(index % 40)}\n`),
  );
  const found = parse(many.join('\n'));
  assert.equal(found.length, 2000);
  assert.ok(found.every(({ product, version }, index) => product === `package-${index}` && version === '1.0-1'));
});

test('this machine has what dpkg-query says', () => {
  assert.ok(existsSync('/var/lib/dpkg/status'), 'this project is built and tested on Debian; dpkg is missing here');
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own placeholders.
  const format = '${db:Status-Status} ${Package} ${Version} ${Architecture}\n';
  const expected = execFileSync('dpkg-query', ['-W', '-f', format], { encoding: 'utf8', maxBuffer: 1 << 26 })
    .split('\n')
    .filter((line) => line.startsWith('installed '))
    .sort();
  const found = readDpkgStatus(nodePlatform(systemClock), '/var/lib/dpkg/status')
    .filter(({ state }) => state === 'installed')
    .map(({ product, version, arch }) => `installed ${product} ${version} ${arch}`)
    .sort();
  assert.deepEqual(found, expected);
  assert.ok(found.length > 50);
});
