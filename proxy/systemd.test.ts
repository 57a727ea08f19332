// Tests of what systemd is told, against a socket that hears it as systemd does.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { silentLog } from '../src/base/log.ts';
import { openSystemd } from './systemd.ts';

/** Receives datagrams as systemd does, and prints each on a line; Node has no such sockets. */
const LISTENER = `use Socket; $| = 1;
socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die; bind($s, pack_sockaddr_un($ARGV[0])) or die; print "listening\\n";
while (defined recv($s, my $m, 4096, 0)) { $m =~ s/\\n/ /g; print "$m\\n"; }`;

let folder = '';
let listener: ChildProcess;
const said: string[] = [];
let heard = Promise.withResolvers<void>();

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-systemd-'));
  const child = spawn('perl', ['-e', LISTENER, join(folder, 'notify')], { stdio: ['ignore', 'pipe', 'inherit'] });
  listener = child;
  createInterface({ input: child.stdout }).on('line', (line) => {
    said.push(line);
    heard.resolve();
    heard = Promise.withResolvers();
  });
  await heardOf(/^listening/);
});
after(async () => {
  listener.kill();
  await once(listener, 'exit');
  await rm(folder, { recursive: true, force: true });
});

async function heardOf(pattern: RegExp, times = 1): Promise<void> {
  while (said.filter((line) => pattern.test(line)).length < times) await heard.promise;
}

function environment(): NodeJS.ProcessEnv {
  return { PATH: process.env.PATH, NOTIFY_SOCKET: join(folder, 'notify'), WATCHDOG_USEC: '100000' };
}

describe('a daemon under systemd [X4]', { timeout: 30_000 }, () => {
  test('says that it is ready, gives signs of life while it answers, none while it does not, and says that it ends', async () => {
    let isWell = true;
    let asked = 0;
    const answers = async () => {
      asked += 1;
      if (!isWell) throw new Error('the database does not answer');
    };
    const systemd = openSystemd({ env: environment(), clock: systemClock, log: silentLog, answers });
    await systemd.ready();
    await heardOf(/READY=1/);
    await heardOf(/WATCHDOG=1/, 2);
    isWell = false;
    // One may be under way.
    const askedThen = asked;
    while (asked < askedThen + 2) await systemClock.sleep(10);
    const signsThen = said.length;
    while (asked < askedThen + 5) await systemClock.sleep(10);
    assert.equal(said.length, signsThen);
    isWell = true;
    await heardOf(/WATCHDOG=1/, 3);
    await systemd.stopping();
    await heardOf(/STOPPING=1/);
    const askedAtEnd = asked;
    await systemClock.sleep(300);
    assert.ok(asked <= askedAtEnd + 1);
  });

  test('without a service manager nobody is told anything', async () => {
    const before = said.length;
    const systemd = openSystemd({
      env: { PATH: process.env.PATH },
      clock: systemClock,
      log: silentLog,
      answers: () => Promise.reject(new Error('asked without a watchdog')),
    });
    await systemd.ready();
    await systemd.stopping();
    assert.equal(said.length, before);
  });
});
