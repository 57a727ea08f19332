// A token that is typed at a terminal is not shown there: what a terminal has shown stays in its scrollback and its recordings.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { systemClock } from '../../src/base/clock.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { startFakeDaemon } from '../../test/fakes/daemon.ts';

const MAIN = fileURLToPath(new URL('../main.ts', import.meta.url));
const TOKEN = 'pratique_license_typed_by_hand';

test('a token that is typed at a terminal is asked for, taken and not shown [A15]', { timeout: 60_000 }, async () => {
  const daemon = await startFakeDaemon();
  const key = join(daemon.folder, 'key.pem');
  await writeFile(key, 'a key');
  const command = `'${process.execPath}' '${MAIN}' license add acme --server https://l.example --public-key '${key}'`;
  // script(1) runs it at a terminal of its own, which shows what is typed unless the program says otherwise.
  const child = spawn('script', ['-qec', command, '/dev/null'], { env: { ...daemon.env, SHELL: '/bin/sh' } });
  try {
    let shown = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (piece) => (shown += String(piece)));
    const ended = new Promise((resolve) => child.once('close', resolve));
    assert.ok(await waitUntil(async () => shown.includes('token (not shown): '), systemClock, 30_000), shown);
    child.stdin.write(`${TOKEN}\n`);
    assert.equal(await ended, 0, shown);
    assert.match(shown, /license acme is added/);
    assert.ok(!shown.includes(TOKEN), shown);
    assert.match(JSON.stringify(daemon.service().calls), new RegExp(TOKEN), 'it has arrived');
  } finally {
    child.kill('SIGKILL');
    await daemon.close();
  }
});
