// Our order of versions against dpkg's own, on random pairs and on known traps.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { runCommand } from '../../base/run-command.ts';
import { compareDebianVersions, isDebianVersion } from './version.ts';

/** From old to new; each line is one trap (deb-version(7) and real packages). */
const ORDERED = [
  ['1.0~~', '1.0~~a', '1.0~', '1.0', '1.0a'],
  ['1.0~rc1-1', '1.0-1', '1.0-1+b1', '1.0-1.1', '1.0-2', '1.0-10', '1.0.1-1'],
  ['2.9', '2.10', '1:0.1', '1:0.1-1', '2:0'],
  ['1.6-2.1', '1.6-2.1+deb12u1', '1.6-2.1+deb12u2', '1.6-2.1+deb12u10'],
  ['7.88.1-10+deb12u5~bpo11+1', '7.88.1-10+deb12u5', '7.88.1-10+deb12u12'],
  ['1a', '1a1', '1b', '1+', '1.'],
  ['99999999999999999998', '99999999999999999999', '100000000000000000000'],
];
const EQUAL = [
  ['1.0', '0:1.0'],
  ['1.0', '1.0-0'],
  ['1.0', '1.00'],
  ['1.0-1', '01.0-01'],
];

test('known traps are ordered as deb-version(7) says', () => {
  for (const line of ORDERED) {
    for (let i = 1; i < line.length; i += 1) {
      const [older, newer] = [line[i - 1] ?? '', line[i] ?? ''];
      assert.ok(compareDebianVersions(older, newer) < 0, `${older} < ${newer}`);
      assert.ok(compareDebianVersions(newer, older) > 0, `${newer} > ${older}`);
    }
  }
  for (const [a, b] of EQUAL) assert.equal(compareDebianVersions(a ?? '', b ?? ''), 0, `${a} = ${b}`);
});

test('what is no version is refused', () => {
  for (const text of ['', '1 0', 'a:1', ':1', '1:', '1-', '1_0', '1.0\n', 'ü']) {
    assert.throws(() => compareDebianVersions(text, '1'), { code: 'vendor-ill/version' }, JSON.stringify(text));
    assert.throws(() => compareDebianVersions(text, text), { code: 'vendor-ill/version' }, JSON.stringify(text));
  }
});

/** A sample in the ordinary run (3 ms a pair); all of them in the full one. */
const PAIRS = process.env.PRATIQUE_TEST_FULL === undefined ? 400 : 8000;

const SCRIPT_TIMEOUT_MS = 600_000;

/** dpkg compares one pair a call; one shell makes all the calls. */
async function askDpkg(pairs: readonly (readonly [string, string])[]): Promise<readonly string[]> {
  // Versions hold only [A-Za-z0-9.+:~-], so they are safe as shell words.
  const script = pairs
    .map(([a, b]) => {
      const is = (operator: string) => `dpkg --compare-versions '${a}' ${operator} '${b}'`;
      return `if ${is('lt')}; then echo -1; elif ${is('eq')}; then echo 0; else echo 1; fi`;
    })
    .join('\n');
  return (await runCommand(['sh', '-s'], { input: script, timeoutMs: SCRIPT_TIMEOUT_MS })).trim().split('\n');
}

test('random pairs are ordered as dpkg orders them', async () => {
  const anyDigits = fc.constantFrom('', '0', '00', '1', '9', '10', '010', '123');
  const anyText = fc.constantFrom('', '.', '~', '~~', '+', 'a', 'Z', '.~', 'rc', '+deb12u', '~bpo', '+b');
  const anyRun = fc.array(fc.tuple(anyText, anyDigits), { maxLength: 4 }).map((runs) => runs.flat().join(''));
  const anyEpoch = fc.constantFrom('', '', '', '0:', '1:');
  const anyRevision = fc.tuple(fc.constantFrom('1', '0', '2', 'a'), anyRun).map(([first, rest]) => `-${first}${rest}`);
  const anyVersion = fc
    .tuple(anyEpoch, fc.constantFrom('0', '1', '2'), anyRun, fc.oneof(fc.constant(''), anyRevision))
    .map((parts) => parts.join(''));
  const seed = Math.trunc(Math.random() * 2 ** 31);
  const pairs = fc.sample(fc.tuple(anyVersion, anyVersion), { seed, numRuns: PAIRS });
  const answers = await askDpkg(pairs);
  assert.equal(answers.length, pairs.length);
  for (const [index, [a, b]] of pairs.entries()) {
    assert.equal(Math.sign(compareDebianVersions(a, b)), Number(answers[index]), `${a} vs ${b} (seed ${seed})`);
  }
});

test('what dpkg takes for a version is one here too, and hostile pairs are ordered as dpkg orders them', async () => {
  const anyCharacter = fc.constantFrom(...'0019aZ.+~:--');
  const anyText = fc.string({ unit: anyCharacter, minLength: 1, maxLength: 12 });
  const anyLong = fc
    .tuple(fc.constantFrom('0', '9', '~', '1a', '0~'), fc.integer({ min: 1, max: 60 }))
    .map(([piece, times]) => `1${piece.repeat(times)}`);
  const anyHostile = fc.oneof({ weight: 4, arbitrary: anyText.map((text) => `1${text}`) }, anyText, anyLong);
  const seed = Math.trunc(Math.random() * 2 ** 31);
  const pairs = fc.sample(fc.tuple(anyHostile, anyHostile), { seed, numRuns: Math.ceil(PAIRS / 4) });
  const texts = [...new Set([...pairs.flat(), '+0:1', '+1:1', '1:+1', '++1:1', '+:1'])];
  const script = texts.map((text) => `dpkg --validate-version '${text}' 2>/dev/null && echo y || echo n`).join('\n');
  const verdicts = (await runCommand(['sh', '-s'], { input: script, timeoutMs: SCRIPT_TIMEOUT_MS })).trim().split('\n');
  const valid = new Set(texts.filter((_, index) => verdicts[index] === 'y'));
  for (const text of valid) assert.ok(isDebianVersion(text), `${text} (seed ${seed})`);
  const comparable = pairs.filter(([a, b]) => valid.has(a) && valid.has(b));
  assert.ok(comparable.length > pairs.length / 8, 'enough of them are versions');
  const answers = await askDpkg(comparable);
  for (const [index, [a, b]] of comparable.entries()) {
    assert.equal(Math.sign(compareDebianVersions(a, b)), Number(answers[index]), `${a} vs ${b} (seed ${seed})`);
  }
});
