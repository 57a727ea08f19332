// Which device a VM's drive becomes: the operator's word, else the first that hardware and guest both know.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DriveFrontEnd } from '../model/drive.ts';
import { chooseFrontEnd } from './drive-front-end.ts';

const choose = (options: {
  wanted?: DriveFrontEnd;
  offered: readonly DriveFrontEnd[];
  known?: readonly DriveFrontEnd[];
}) => chooseFrontEnd({ wanted: options.wanted, offered: options.offered, known: options.known });

test('the first that the hardware has a place for and the guest a driver is taken [A4]', () => {
  const offered = ['virtio-blk', 'scsi-cd', 'nvme'] as const;
  assert.equal(choose({ offered, known: ['virtio-blk', 'nvme'] }), 'virtio-blk');
  assert.equal(choose({ offered, known: ['nvme', 'scsi-cd'] }), 'scsi-cd', "the hardware's order counts");
  assert.equal(choose({ offered, known: ['usb-storage', 'nvme'] }), 'nvme');
});

test('a guest that has told nothing is taken at its hardware', () => {
  assert.equal(choose({ offered: ['scsi-cd', 'nvme'] }), 'scsi-cd');
});

test("the operator's word is above what the guest says, not above what the hardware has [A4]", () => {
  const offered = ['virtio-blk', 'nvme'] as const;
  assert.equal(choose({ wanted: 'nvme', offered, known: ['virtio-blk'] }), 'nvme');
  assert.throws(() => choose({ wanted: 'ide-cd', offered, known: ['ide-cd'] }), {
    code: 'usage/drive-front-end',
    message: /no place for a drive as ide-cd, only for virtio-blk, nvme/,
    next: /drive\.frontEnd/,
  });
});

test('nothing in common is an error that names both sides', () => {
  assert.throws(() => choose({ offered: ['virtio-blk'], known: ['ide-cd', 'usb-storage'] }), {
    code: 'usage/drive-front-end',
    message: /a place for virtio-blk, its guest has drivers for ide-cd, usb-storage/,
  });
  assert.throws(() => choose({ offered: [], known: [] }), {
    message: /a place for none, its guest has drivers for none/,
  });
  assert.throws(() => choose({ offered: [] }), { message: /its guest has told of no drivers/ });
});
