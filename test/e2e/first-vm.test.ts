// Runs every command of docs/first-vm.md as it stands there, on real VMs, so that the page cannot rot.
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { tryCommand } from '../../src/base/run-command.ts';

const ROOT = join(import.meta.dirname, '../..');
const PORT = 20_000 + (process.pid % 10_000);
/** In the place of the page's own name: a reader may be at it on this machine, and an earlier run may have been cut off. */
const NAME = `first-vm-${process.pid}`;
const HOME = `/var/tmp/${NAME}`;
const RUN = `/run/${NAME}`;
const TIMEOUT_MS = 400_000;

/** What the page shows in its `sh` blocks, one after another. */
async function commandsOfPage(): Promise<string> {
  const page = await readFile(join(ROOT, 'docs/first-vm.md'), 'utf8');
  const blocks = [...page.matchAll(/^```sh\n([\s\S]*?)^```$/gm)].map((match) => match[1] ?? '');
  assert.ok(blocks.length >= 10, `the page has only ${blocks.length} blocks of commands`);
  return blocks.join('\n').replaceAll('first-vm', NAME).replaceAll(':8470', `:${PORT}`);
}

/** Root, or an ordinary user that may become it: the page is for root. */
const asRoot = (...argv: readonly string[]): readonly string[] =>
  process.getuid?.() === 0 ? argv : ['sudo', '-n', '-E', ...argv];

/** Ends what a page that broke off left behind, by the process ids that it wrote. */
async function sweep(): Promise<void> {
  const vms = await readdir(join(RUN, 'vm')).catch(() => []);
  const files = ['daemon.pid', ...vms.map((vm) => `vm/${vm}/pid`)].map((name) => join(RUN, name));
  for (const file of [...files, `${HOME}/httpd.pid`, `${HOME}/qemu.pid`]) {
    const pid = /^\d+/.exec(await readFile(file, 'utf8').catch(() => ''))?.[0];
    if (pid !== undefined) await tryCommand(asRoot('kill', '-9', pid));
  }
  await tryCommand(asRoot('ip', 'netns', 'delete', NAME));
  for (const folder of [HOME, RUN]) await tryCommand(asRoot('rm', '-rf', folder));
}

/** Runs the page and returns what it printed. To a file: what runs in the background would hold a pipe open. */
async function runPage(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-page-'));
  t.after(async () => {
    await sweep();
    await rm(folder, { recursive: true });
  });
  const log = join(folder, 'log');
  const script = `exec >${log} 2>&1\n${await commandsOfPage()}`;
  const { exitCode } = await tryCommand(asRoot('sh', '-eu', '-c', script), { cwd: ROOT, timeoutMs: TIMEOUT_MS });
  const said = await readFile(log, 'utf8');
  assert.equal(exitCode, 0, `a command of the page failed; the output until then:\n${said}`);
  return said;
}

test('the page "A first VM by hand" does what it says, command by command [A1 A9 A10 A11 A12]', async (t) => {
  const said = await runPage(t);
  const inOrder = [
    /hello +1\.1\.0 +security +HELLO-1/,
    /web is booting, not plugged in/,
    /not plugged in yet/,
    /web: installing: install bundle\/shop/,
    /web is connected/,
    /^1\.1\.0\nshop 1\.0\.0$/m,
    /No drift/,
    /shop +1\.0\.0 +1\.1\.0 +security/,
    /drift ends with 8/,
    /^shop 1\.1\.0$/m,
    /The chain of \d+ records is intact/,
    /old: connected/,
    /^shop 1\.1\.0$/m,
    /old is (off|staged)/,
    /The chain of \d+ records is intact/,
  ];
  let rest = said;
  for (const wanted of inOrder) {
    const at = rest.search(wanted);
    assert.ok(at >= 0, `${wanted} does not follow; the whole output:\n${said}`);
    rest = rest.slice(at + (wanted.exec(rest.slice(at))?.[0].length ?? 0));
  }
  const left = await tryCommand(['ip', 'netns', 'list']);
  assert.ok(!left.stdout.includes(NAME), 'the page leaves its namespace behind');
  await assert.rejects(readdir(HOME), 'the page leaves its folder behind');
});
