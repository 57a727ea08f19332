// Application units in a Debian guest with systemd: one that is held by pratique-ready.target starts when the host has admitted the
// machine; the same unit without the drop-in starts as the boot comes to it.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { type DebianHouse, makeDebianHouse, type Taught } from '../power-loss/debian-house.ts';

/** A service that notes when it started, where nginx serves it; the clock was set by QEMU to the second. */
const unit = (name: string): string => `[Unit]
Description=Notes when it started

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'mkdir -p /run/pratique-guest/www; date +%%s >/run/pratique-guest/www/${name}'

[Install]
WantedBy=multi-user.target
`;
const FILES: Taught = {
  '/etc/systemd/system/held.service': unit('held'),
  '/etc/systemd/system/held.service.d/pratique.conf':
    '[Unit]\nRequires=pratique-ready.target\nAfter=pratique-ready.target\n',
  '/etc/systemd/system/free.service': unit('free'),
  '/etc/systemd/system/multi-user.target.wants/held.service': '-> ../held.service',
  '/etc/systemd/system/multi-user.target.wants/free.service': '-> ../free.service',
};

let house: DebianHouse;
before(async () => {
  house = await makeDebianHouse('debian-systemd');
});
after(async () => {
  await house?.close();
});

test('a held unit starts after the admission, an unheld one before; nginx is updated and nobody waits for it [A5 A10]', async (t) => {
  // Without a kernel update it needs no reboot, and so comes to its end sooner.
  const guest = await house.addVm({ holds: ['linux-image-*'] }, FILES);
  await guest.start();
  assert.equal(await guest.settle(), 'connected', await guest.why());
  const opened = (await guest.events()).findLast(({ text }) => text.startsWith('open:'));
  assert(opened !== undefined, await guest.why());
  const [held, free] = [Number(await guest.page('/held')), Number(await guest.page('/free'))];
  const openedSeconds = opened.atMs / 1000;
  t.diagnostic(
    `free ${(free - openedSeconds).toFixed(1)} s, held ${(held - openedSeconds).toFixed(1)} s, as seen from the opening`,
  );
  assert(free < openedSeconds && free < held, 'the unheld unit started as the boot came to it');
  assert(held >= openedSeconds - 2, 'the held unit waited for the admission');
  const facts = await guest.page('/facts');
  const nginx = /^package nginx (\S+)$/m.exec(facts)?.[1];
  const before = house.image.debian?.packages.find(({ name }) => name === 'nginx')?.version;
  t.diagnostic(`nginx ${before} -> ${nginx}`);
});
