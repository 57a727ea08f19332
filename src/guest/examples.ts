// One example of every message, both ways: for the protocol page and for whoever writes another agent. A test validates each.
import type { Digest } from '../base/digest-text.ts';
import type { ConfigDriveFile } from '../model/guest-config.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import { MANIFEST_FORMAT, type Manifest } from '../model/manifest.ts';
import type { AgentMessageOf, AgentMessageType, HostMessageOf, HostMessageType } from './messages.ts';

const NONCE = '5f1c0a9be2d34781a6c0d94e8b7f2a13';
const BOOT = '0b8c1d52-7c6e-4f0a-9a51-2f6f1f0d3c44';
// The casts hold: the test of the examples validates each against its schema.
const RUN = 'c0ffee00c0ffee00c0ffee00c0ffee00' as RunId;
const VM = 'web-1' as VmId;
const PLAN_DIGEST = '3b1f6f5c4c0d6a2f9e8d7c6b5a493827160f1e2d3c4b5a69788796a5b4c3d2e1' as Digest;
const MANIFEST_DIGEST = '9f8e7d6c5b4a39281706f5e4d3c2b1a0918273645546372819a0b1c2d3e4f506' as Digest;

const ARTIFACT_DIGEST = '0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9' as Digest;

const STALE: Inventory = {
  os: { id: 'tiny', versionId: '1', arch: 'amd64', kernel: '6.1.0-28-amd64' },
  products: [{ ecosystem: 'bundle', product: 'demo-service', version: '1.0.0', state: 'installed' }],
  config: [],
  agent: { version: '0.1.0', digest: null },
  abilities: { drives: ['virtio-blk'], compressions: ['none', 'gzip'] },
  freeBytes: 52_428_800,
  rebootRequired: false,
  lastShutdown: null,
};
const FRESH: Inventory = {
  ...STALE,
  products: [{ ecosystem: 'bundle', product: 'demo-service', version: '1.1.0', state: 'installed' }],
};
const RESULTS: AgentMessageOf<'installed'>['results'] = [
  { item: 'bundle/demo-service', outcome: 'installed', exitCode: 0, checkPassed: true, durationMs: 180 },
];

function envelope(seq: number) {
  return { nonce: NONCE, boot: BOOT, seq };
}

export const AGENT_EXAMPLES: { readonly [K in AgentMessageType]: AgentMessageOf<K> } = {
  hello: { type: 'hello', protocols: [1], boot: BOOT, seq: 0, agent: { version: '0.1.0' } },
  inventory: { type: 'inventory', ...envelope(1), inventory: STALE },
  drive: { type: 'drive', ...envelope(2), run: RUN, manifestDigest: MANIFEST_DIGEST, state: 'verified' },
  progress: {
    type: 'progress',
    ...envelope(3),
    run: RUN,
    item: 'bundle/demo-service',
    phase: 'install',
    done: 0,
    total: 1,
  },
  installed: {
    type: 'installed',
    ...envelope(4),
    run: RUN,
    manifestDigest: MANIFEST_DIGEST,
    results: RESULTS,
    rebootRequired: false,
  },
  confirm: {
    type: 'confirm',
    ...envelope(6),
    run: RUN,
    planDigest: PLAN_DIGEST,
    manifestDigest: MANIFEST_DIGEST,
    results: RESULTS,
    inventory: FRESH,
  },
  fault: { type: 'fault', ...envelope(7), code: 'no-space', detail: 'writing /var/lib/pratique/state.json: disk full' },
  bye: { type: 'bye', ...envelope(8), reason: 'shutdown' },
  pong: { type: 'pong', ...envelope(9) },
  chunk: {
    type: 'chunk',
    ...envelope(1),
    transfer: 1,
    index: 0,
    total: 2,
    text: '{"type":"inventory","inventory":{"os":{"id":"tiny","versionId":"1","arch":"amd64"},"products":[',
  },
};

export const HOST_EXAMPLES: { readonly [K in HostMessageType]: HostMessageOf<K> } = {
  open: { type: 'open', protocols: [1], protocol: 1, ...envelope(0), seq: 0, vm: VM },
  'ask-inventory': { type: 'ask-inventory', ...envelope(1) },
  offer: {
    type: 'offer',
    ...envelope(2),
    run: RUN,
    planDigest: PLAN_DIGEST,
    manifestDigest: MANIFEST_DIGEST,
    label: 'PRATIQUE',
  },
  release: { type: 'release', ...envelope(3), run: RUN, manifestDigest: MANIFEST_DIGEST },
  reboot: { type: 'reboot', ...envelope(4), run: RUN },
  'ask-confirm': {
    type: 'ask-confirm',
    ...envelope(4),
    run: RUN,
    planDigest: PLAN_DIGEST,
    manifestDigest: MANIFEST_DIGEST,
  },
  admitted: { type: 'admitted', ...envelope(5), run: RUN },
  hold: {
    type: 'hold',
    ...envelope(5),
    code: 'confirm-refused',
    detail: 'the inventory does not show demo-service 1.1.0',
  },
  refuse: {
    type: 'refuse',
    ...envelope(6),
    code: 'out-of-order',
    detail: 'progress has the counter 9 where 4 is next',
  },
  ping: { type: 'ping', ...envelope(7) },
  chunk: {
    type: 'chunk',
    ...envelope(8),
    transfer: 1,
    index: 1,
    total: 2,
    text: '"detail":"…"}',
  },
};

/** /manifest.json of the drive in the examples. */
export const MANIFEST_EXAMPLE: Manifest = {
  format: MANIFEST_FORMAT,
  vm: VM,
  run: RUN,
  planDigest: PLAN_DIGEST,
  items: [
    {
      id: 'bundle/demo-service',
      ecosystem: 'bundle',
      product: 'demo-service',
      version: '1.1.0',
      install: {
        action: 'bundle',
        prefix: '/opt/demo-service',
        compression: 'gzip',
        install: 'install.sh',
        check: 'check.sh',
        timeoutMs: 60_000,
      },
      files: [{ path: '/packages/demo-service-1.1.0.tar.gz', digest: ARTIFACT_DIGEST, sizeBytes: 18_432 }],
    },
  ],
  extraFiles: [],
};

/** A file below /config/ of such a drive. */
export const CONFIG_EXAMPLE: ConfigDriveFile = {
  format: 'pratique.config/1',
  vm: VM,
  run: RUN,
  salt: ARTIFACT_DIGEST,
  item: {
    item: 'shop',
    version: '3+9c1d52e07f3a4b68',
    setting: {
      kind: 'product',
      product: 'shop',
      files: [{ path: '/etc/shop/shop.conf', content: 'listen = 8080\n', mode: '0640', owner: 'root', group: 'shop' }],
    },
    apply: [{ restart: 'shop.service' }],
    health: ['service:shop.service', 'port:8080'],
  },
};
