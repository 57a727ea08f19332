// Holds the tree against the rules of the house, and plants a violation of each rule to see it found.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import {
  checkLayers,
  checkOnlyHere,
  checkStyle,
  importsOf,
  LAYERS,
  ONLY_HERE,
  type SourceFile,
  type Violation,
} from './tidy/rules.ts';

const ROOT = new URL('..', import.meta.url).pathname;

function readTree(): readonly SourceFile[] {
  const listed = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '*.ts'], {
    cwd: ROOT,
    encoding: 'utf8',
  });
  return listed
    .split('\n')
    .filter((path) => path !== '' && !path.startsWith('test/tidy'))
    .flatMap((path) => {
      try {
        return [{ path, text: readFileSync(`${ROOT}/${path}`, 'utf8') }];
      } catch {
        return []; // Deleted but not yet committed.
      }
    });
}

const show = (violations: readonly Violation[]): string =>
  violations.map(({ path, line, rule, text }) => `${path}:${line} ${rule}: ${text}`).join('\n');

const tree = readTree();

test('the tree is read and its imports are seen', () => {
  assert.ok(tree.length > 50, `${tree.length} files`);
  assert.ok(tree.flatMap(importsOf).length > 200);
});

test('rooms import only what lies below them', () => assert.equal(show(checkLayers(tree)), ''));
test('what may stand in one place only stands there only', () => assert.equal(show(checkOnlyHere(tree)), ''));
test('files keep the limits of style', () => assert.equal(show(checkStyle(tree)), ''));

test('a planted import against each layer is found', () => {
  const rooms = Object.keys(LAYERS);
  let planted = 0;
  for (const [room, allowed] of Object.entries(LAYERS)) {
    for (const other of rooms.filter((each) => each !== room && !allowed.includes(each))) {
      const file = { path: `src/${room}/planted.ts`, text: `// x\nimport { y } from '../${other}/z.ts';\n` };
      assert.equal(checkLayers([file]).length, 1, `${room} -> ${other}`);
      planted += 1;
    }
  }
  assert.ok(planted > 100);
  assert.equal(
    checkLayers([{ path: 'src/gate/planted.ts', text: "import type { x } from '../confirm/judge.ts';" }]).length,
    0,
  );
});

test('a planted import of a test, and one of Node code by the guest agent, are found', () => {
  assert.equal(checkLayers([{ path: 'proxy/planted.ts', text: "await import('../test/fakes/x.ts');" }]).length, 1);
  assert.equal(
    checkLayers([{ path: 'guest-agent/planted.ts', text: "import { digestOf } from '../src/base/digest.ts';" }]).length,
    1,
  );
  assert.equal(
    checkLayers([{ path: 'guest-agent/planted.ts', text: "import { printable } from '../src/base/printable.ts';" }])
      .length,
    0,
  );
});

test('a planted violation of each "only here" rule is found, in comments it is not', () => {
  const samples: Readonly<Record<string, string>> = {
    'only gate/ opens': 'await vm.raiseLinks();',
    'only gate/ lets a VM run': 'await running.resume();',
    'only confirm/judge.ts makes evidence': 'const x = facts as Evidence;',
    'only hypervisor/ speaks QMP or libvirt': "send('set_link');",
    'only base/clock.ts reads the time': 'const t = Date.now();',
    'only license/vault.ts sees a token in clear': 'const t = unsealToken(x);',
  };
  for (const { rule } of ONLY_HERE) {
    const sample = samples[rule];
    assert.ok(sample !== undefined, `the rule "${rule}" has a sample`);
    assert.deepEqual(
      checkOnlyHere([{ path: 'src/update/planted.ts', text: `// x\n${sample}\n` }]).map((each) => [
        each.rule,
        each.line,
      ]),
      [[rule, 2]],
    );
    assert.equal(checkOnlyHere([{ path: 'src/update/planted.ts', text: `// ${sample}\n` }]).length, 0);
  }
});

test('a planted violation of each style rule is found', () => {
  const plant = (path: string, text: string): readonly string[] =>
    checkStyle([{ path, text }]).map((each) => each.rule);
  assert.deepEqual(plant('src/base/BadName.ts', '// x\n'), ['files are kebab-case']);
  assert.deepEqual(plant('src/base/x.ts', 'export const x = 1;\n'), ['the first line says what the file is for']);
  assert.equal(plant('src/base/x.ts', `// x\n${'\n'.repeat(700)}`).length, 1);
  assert.equal(plant('src/base/x.ts', '// x\n// TODO later\n').length, 1);
  assert.equal(plant('src/base/x.ts', '// x\n// TODO #12 later\n').length, 0);
  assert.equal(plant('src/base/x.test.ts', "// x\ntest.skip('y', () => {});\n").length, 1);
  assert.equal(
    plant('src/base/x.test.ts', "// x\ntest('y', {\n  skip: isHard ? false : 'no',\n}, () => {});\n").length,
    1,
  );
  assert.equal(plant('src/base/x.ts', '// x\nexport class VmManager {}\n').length, 1);
});
