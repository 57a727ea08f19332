// A VM's configuration as a NoCloud seed: what of it cloud-init is told, and when it is to begin anew.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { GuestConfigItem } from '../model/guest-config.ts';
import { instanceId, renderNoCloud } from './nocloud.ts';

const FILE: GuestConfigItem = {
  item: 'motd',
  version: 'v1',
  setting: { kind: 'file', file: { path: '/etc/motd', content: '"]}\n: - #\n', mode: '0640', group: 'adm' } },
  apply: [{ restart: 'x.service' }, { reload: 'y.service' }, { reboot: true }],
};
const HOSTNAME: GuestConfigItem = {
  item: 'name',
  version: 'v1',
  setting: { kind: 'hostname', hostname: 'web1.example.org' },
};

function cloudConfig(items: readonly GuestConfigItem[]): Record<string, unknown> {
  const text = renderNoCloud({ vm: 'web1', items })?.userData ?? '';
  assert.ok(text.startsWith('#cloud-config\n'));
  return JSON.parse(text.slice('#cloud-config\n'.length));
}

test('files keep their texts whatever stands in them, and only typed steps become commands [A14]', () => {
  const config = cloudConfig([FILE]);
  assert.deepEqual(config.write_files, [
    { path: '/etc/motd', content: '"]}\n: - #\n', permissions: '0640', owner: 'root:adm' },
  ]);
  // The reboot is the run's: it knows the policy.
  assert.deepEqual(config.runcmd, [
    ['systemctl', '--no-block', 'try-restart', '--', 'x.service'],
    ['systemctl', '--no-block', 'try-reload-or-restart', '--', 'y.service'],
  ]);
  assert.equal(config.preserve_hostname, true);
});

test('what is not text goes as base64, and keys are added to a user who stays as he is', () => {
  const keys: GuestConfigItem = {
    item: 'admins',
    version: 'v1',
    setting: { kind: 'ssh-keys', user: 'root', keys: ['ssh-ed25519 AAAA ann'] },
  };
  const files = [{ path: '/etc/k', content: 'AAE=', encoding: 'base64' as const }];
  const product: GuestConfigItem = { item: 'p', version: 'v1', setting: { kind: 'product', product: 'p', files } };
  const config = cloudConfig([keys, product, HOSTNAME]);
  assert.deepEqual(config.users, [{ name: 'root', ssh_authorized_keys: ['ssh-ed25519 AAAA ann'], lock_passwd: false }]);
  assert.deepEqual(config.write_files, [
    { path: '/etc/k', content: 'AAE=', encoding: 'b64', permissions: '0644', owner: 'root:root' },
  ]);
  assert.deepEqual([config.hostname, config.fqdn], ['web1', 'web1.example.org']);
});

test('cloud-init begins anew when a version changes, and not for another order of the same', () => {
  const first = instanceId('web1', [FILE, HOSTNAME]);
  assert.match(first, /^pratique-web1-[0-9a-f]{16}$/);
  assert.equal(instanceId('web1', [HOSTNAME, FILE]), first);
  assert.notEqual(instanceId('web1', [HOSTNAME, { ...FILE, version: 'v2' }]), first);
  assert.notEqual(instanceId('web1', [HOSTNAME]), first);
  const metaData = renderNoCloud({ vm: 'web1', items: [FILE, HOSTNAME] })?.metaData ?? '';
  assert.deepEqual(JSON.parse(metaData), { 'instance-id': first, 'local-hostname': 'web1.example.org' });
  assert.equal(renderNoCloud({ vm: 'web1', items: [] }), null);
});
