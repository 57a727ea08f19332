// Tests of what the packages are made of: manual pages, completions, control files, the configuration file.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { runCommand } from '../../src/base/run-command.ts';
import { parseConfigText } from '../config.ts';
import { ConfigFileSchema } from '../config-schema.ts';
import { commandTree, everyNode } from './command-tree.ts';
import { completionScript } from './completions.ts';
import { controlText } from './deb.ts';
import { manualPages, roff } from './manual.ts';
import { pratiqueProgram } from './program-tree.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-packaging-'));
});
after(async () => await rm(folder, { recursive: true, force: true }));

const tree = pratiqueProgram();

describe('the manual [A16]', () => {
  const pages = manualPages(tree, 'Exit codes: 0 done.', { version: '1.2.3', day: '2026-11-20' });

  test('every command and option of the program has its place in a page', () => {
    const all = pages.map(({ text }) => text).join('\n');
    const nodes = [...everyNode(tree)];
    assert.ok(nodes.length > 30);
    for (const node of nodes) {
      const words = node.path.length > 2 ? node.path.slice(1) : node.path;
      assert.ok(all.includes(roff(words.join(' '))), node.path.join(' '));
      for (const { flags } of node.options) for (const flag of flags) assert.ok(all.includes(roff(flag)), flag);
    }
  });

  test('no text of a command becomes a request of roff', async () => {
    const evil = commandTree({
      ...fakeCommand('evil'),
      description: () => ".so /etc/passwd\n'ds x\n\\fBbold",
    });
    const [page] = manualPages({ ...tree, verbs: [evil] }, '', { version: '1', day: '2026-11-20' }).slice(1);
    assert.ok(page !== undefined);
    assert.doesNotMatch(page.text, /^\.so/m);
    assert.doesNotMatch(page.text, /^'ds/m);
    assert.match(page.text, /\\efBbold/);
  });
});

describe('completions [A16]', () => {
  const complete = async (...typed: string[]): Promise<string> => {
    const path = join(folder, 'completion');
    await writeFile(path, completionScript(tree, 'bash'));
    const script = `. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pratique; echo "\${COMPREPLY[@]}"`;
    return (await runCommand(['bash', '-c', script, path, ...typed])).trim();
  };

  test('bash is offered the verbs of a noun', async () => {
    assert.equal(await complete('pratique', 'vm', 'ad'), 'add admit');
  });

  test('bash is offered the options of a verb, and the words that an option takes', async () => {
    assert.match(await complete('pratique', 'vm', 'add', '--inst'), /^--install$/);
    assert.equal(await complete('pratique', 'vm', 'add', '--install', 'lis'), 'listed');
  });

  for (const shell of ['zsh', 'fish'] as const) {
    test(`every verb stands in the script for ${shell}`, () => {
      const script = completionScript(tree, shell);
      for (const { path } of everyNode(tree)) assert.ok(script.includes(path.at(-1) ?? ''), path.join(' '));
    });
  }
});

describe('what the packages bring [A16]', () => {
  test('the configuration file is right as it is, and with every line of it in force', async () => {
    const text = await readFile(join(import.meta.dirname, 'files/pratique.toml'), 'utf8');
    assert.equal(Object.keys(await parseConfigText(text, 'pratique.toml')).length, 0);
    // A line that is a key, a table or a list of tables, as against a sentence.
    const whole = text.replace(/^#(?=(\[|[a-zA-Z]+ = ))/gm, '');
    const parsed = await parseConfigText(whole, 'pratique.toml');
    assert.equal(parsed.policy?.install, 'all');
    assert.equal(parsed.vendors?.length, 2);
    for (const key of Object.keys(parsed)) assert.ok(Object.hasOwn(ConfigFileSchema.properties, key));
  });

  test('a control file has one field a line, and paragraphs that Debian reads', () => {
    const text = controlText(
      {
        name: 'x',
        version: '1.0',
        architecture: 'amd64',
        section: 'admin',
        depends: ['a (>= 1)', 'b'],
        summary: 'one line',
        description: ['word '.repeat(40).trim(), 'second'],
      },
      17,
    );
    assert.match(text, /^Depends: a \(>= 1\), b$/m);
    assert.match(text, /^Installed-Size: 17$/m);
    const [, description = ''] = text.split('Description: one line\n');
    for (const line of description.trimEnd().split('\n')) assert.match(line, /^ (\.|\S.{0,77})$/);
    assert.match(description, /\n \.\n second\n$/);
  });
});

function fakeCommand(name: string) {
  return {
    name: () => name,
    description: () => '',
    registeredArguments: [],
    createHelp: () => ({ visibleOptions: () => [], visibleCommands: () => [] }),
  };
}
