// What a VM is to have, from the files of a host: inheritance, named values, secrets, and what is said of mistakes.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { redactText } from '../base/redact.ts';
import { BLANKED } from '../model/guest-config.ts';
import { type GuestConfig, openGuestConfig, type VmFacts } from './guest-config.ts';
import { layerOf } from './layer.ts';

type House = { readonly folder: string; readonly config: GuestConfig; readonly write: (files: Files) => Promise<void> };
type Files = Readonly<Record<string, string>>;

const FACTS: VmFacts = { group: 'web', macs: ['52:54:00:00:00:01'] };

async function house(t: TestContext, files: Files, document?: object): Promise<House> {
  const root = await mkdtemp(join(tmpdir(), 'guest-config-'));
  t.after(() => rm(root, { recursive: true }));
  const folder = join(root, 'guests');
  await mkdir(folder);
  const write = async (more: Files) => {
    for (const [name, text] of Object.entries(more)) {
      const path = join(folder, name);
      await mkdir(dirname(path), { recursive: true });
      await writeFile(path, text);
      await chmod(path, name.startsWith('secrets/') ? 0o600 : 0o644);
    }
  };
  await write(files);
  const at = () => 'https://x/v1/vms/web1 serial 3';
  const documentOf = async (vm: string) => {
    return {
      layer: layerOf(document, { name: `vm ${vm}`, source: 'server', at }),
      trouble: [],
      remarks: ['from afar'],
    };
  };
  const server = document === undefined ? {} : { server: { documentOf } };
  const config = await openGuestConfig({ folder, stateFolder: join(root, 'state'), factsOf: () => FACTS, ...server });
  return { folder, config, write };
}

const DEFAULT = `
[values]
domain = "example.org"
dns = "192.0.2.53"

[items.hostname]
kind = "hostname"
hostname = "\${vm}.\${domain}"

[items.motd]
kind = "file"
path = "/etc/motd"
content = "group \${group}, costs $\${5}\\n"
mode = "0644"
`;
const OWN = `
[values]
domain = "web.example.org"

[items.lan]
kind = "network"

[[items.lan.interfaces]]
mac = "52:54:00:00:00:01"
addresses = ["192.0.2.10/24"]
gateway4 = "192.0.2.1"
dns = ["\${dns}"]
`;

test('a VM inherits values and items, and what stands nearer to it wins [A14]', async (t) => {
  const { config, folder } = await house(t, {
    'default.toml': DEFAULT,
    'group-web.yaml': 'items:\n  banner: {kind: file, path: /etc/issue, content: hello}\n  motd: {remove: true}\n',
    'group-db.toml': '[items.db]\nkind = "hostname"\nhostname = "db"\n',
    'vm-web1.toml': OWN,
    'vm-web2.toml': '[items.hostname]\nkind = "hostname"\nhostname = "other"\n',
  });
  const found = await config.resolve('web1');
  assert.deepEqual(found?.trouble, []);
  assert.deepEqual(found?.remarks, []);
  const byName = new Map(found?.items.map((item) => [item.item, item]));
  assert.deepEqual([...byName.keys()], ['banner', 'hostname', 'lan']);
  assert.deepEqual(byName.get('hostname')?.setting, { kind: 'hostname', hostname: 'web1.web.example.org' });
  assert.deepEqual(byName.get('hostname')?.origin, {
    source: 'file',
    at: `${join(folder, 'default.toml')}:6`,
    layer: 'default',
  });
  assert.equal(byName.get('banner')?.origin.at, `${join(folder, 'group-web.yaml')}:2`);
  const lan = byName.get('lan')?.setting;
  assert.deepEqual(lan?.kind === 'network' && lan.interfaces[0]?.dns, ['192.0.2.53']);
});

test('a host without any file configures nothing, and a file that disappeared is no trouble', async (t) => {
  const { config } = await house(t, {});
  assert.equal(await config.resolve('web1'), null);
  const elsewhere = await house(t, { 'vm-web2.toml': OWN });
  assert.equal(await elsewhere.config.resolve('web1'), null);
});

test('a version changes when the content does, also when its own version stays, and nobody without the key can make it', async (t) => {
  const file = (version: string, content: string) =>
    `[items.shop]\nkind = "product"\nproduct = "shop"\n${version}files = [{ path = "/etc/shop.conf", content = "${content}" }]\n`;
  const { config, write } = await house(t, { 'default.toml': file('version = "3"\n', 'a') });
  const other = await house(t, { 'default.toml': file('version = "3"\n', 'a') });
  const versionOf = async (from: GuestConfig) => (await from.resolve('web1'))?.items[0]?.version ?? '';
  const first = await versionOf(config);
  assert.match(first, /^3\+[0-9a-f]{16}$/);
  assert.equal(await versionOf(config), first);
  assert.notEqual(await versionOf(other.config), first);
  await write({ 'default.toml': file('version = "3"\n', 'b') });
  assert.notEqual(await versionOf(config), first);
  await write({ 'default.toml': file('', 'a') });
  assert.match(await versionOf(config), /^[0-9a-f]{16}$/);
});

const SECRET = 'hunter2-and-more';
const WITH_SECRET = `
[values]
password = { secret = "db/password" }
unused = { secret = "absent" }

[items.app]
kind = "product"
product = "app"

[[items.app.files]]
path = "/etc/app.conf"
content = "password=\${password};"

[[items.app.files]]
path = "/etc/app.key"
content = { secret = "key.bin" }
encoding = "base64"
`;

test('secrets come from files of the host, are blanked for people, and taken out of logs', async (t) => {
  const { config, write } = await house(t, {
    'default.toml': WITH_SECRET,
    'secrets/db/password': `${SECRET}\n`,
    'secrets/key.bin': '\u0000\u0001',
  });
  const item = (await config.resolve('web1'))?.items[0];
  assert.ok(item?.setting.kind === 'product' && item.hasSecret);
  assert.deepEqual(
    item.setting.files.map(({ content }) => content),
    [`password=${SECRET};`, 'AAE='],
  );
  const shown = await config.show('web1');
  assert.ok(!JSON.stringify(shown).includes(SECRET) && !JSON.stringify(shown).includes('AAE='));
  const settings = shown?.items[0]?.setting;
  assert.deepEqual(settings?.kind === 'product' && settings.files.map(({ content }) => content), [
    `password=${BLANKED};`,
    BLANKED,
  ]);
  assert.deepEqual(
    shown?.items[0]?.values.map(({ name, value }) => [name, value]),
    [['password', BLANKED]],
  );
  assert.ok(!redactText(`oops ${SECRET}`).includes(SECRET));
  await write({ 'secrets/db/password': 'another-one\n' });
  const renewed = (await config.resolve('web1'))?.items[0];
  assert.notEqual(renewed?.version, item.version);
});

test('a secret that is missing, open to others or in another place than a file is trouble that names the line', async (t) => {
  const { config, folder, write } = await house(t, { 'default.toml': WITH_SECRET, 'secrets/key.bin': 'x' });
  const trouble = async () => (await config.resolve('web1'))?.trouble.join('\n') ?? '';
  const path = join(folder, 'secrets/db/password');
  assert.match(await trouble(), new RegExp(`default.toml:3: the secret ${path} is missing`));
  await write({ 'secrets/db/password': SECRET });
  assert.equal(await trouble(), '');
  await chmod(path, 0o640);
  assert.match(await trouble(), /is open to others; chmod 600/);
  await chmod(path, 0o600);
  const inName = `[values]\nname = { secret = "key.bin" }\n[items.h]\nkind = "hostname"\nhostname = "\${name}"\n`;
  await write({ 'default.toml': inName });
  assert.match(await trouble(), /default.toml:5: `items.h.hostname` holds a secret; only the content of a file may/);
  await write({ 'default.toml': inName.replace('key.bin', '../x') });
  assert.match(await trouble(), /default.toml:2: `values.name.secret` must match/);
});

const MISTAKES: readonly (readonly [string, string, RegExp])[] = [
  ['vm-web1.toml', '[itms.x]\n', /vm-web1.toml:1: `itms` is not a known key; the nearest known key is `items`/],
  ['vm-web1.toml', '[items.x]\nkind = "file"\npaht = "/x"\n', /:3: `items.x.paht` is not a known key; .*`path`/],
  ['vm-web1.toml', '[items.x]\nkind = "fiel"\n', /:2: `items.x.kind` must be one of "hostname", "network"/],
  ['vm-web1.yaml', 'items:\n  x:\n    kind: hostname\n    hostnam: y\n', /:4: `items.x.hostnam` is .*`hostname`/],
  ['vm-web1.json', '{"items":\n{"x":{"kind":"hostname",\n"hostname":5}}}', /:3: `items.x.hostname` must be a string/],
  ['vm-web1.yaml', 'a: &x 1\nb: *x\n', /vm-web1.yaml:1: aliases are not read/],
  ['vm-web1.yaml', 'values: {a: 1}\nvalues: {b: 1}\n', /vm-web1.yaml:2: Map keys must be unique/],
  ['vm-web1.toml', 'x = \n', /vm-web1.toml:1: /],
  [
    'vm-web1.toml',
    `[items.x]\nkind = "hostname"\nhostname = "\${dmain}"\n`,
    /:3: `items.x.hostname` names `\$\{dmain\}`, which is no known value; the nearest known value is `domain`/,
  ],
  ['vm-web1.toml', '[items.x]\nkind = "hostname"\nhostname = "a${b"\n', /:3: .* names `\$\{b`/],
  ['vm-web1.toml', '[values]\nvm = "x"\n', /:2: `values.vm` is a value that every VM has already/],
  ['vm-web1.toml', `[values]\nx = "\${vm}"\n`, /:2: `values.x` refers to another value/],
  ['vm-web1.toml', '[values]\nx = { secretText = "y" }\n', /:2: `values.x` holds a secret itself/],
  ['vm-web1.toml', '[items.mtod]\nremove = true\n', /:1: there is no inherited item `mtod`.*`motd`/],
  ['vm-web1.toml', '[items.x]\nkind = "hostname"\nhostname = "A_B"\n', /:3: `items.x.hostname` must match/],
  [
    'vm-web1.toml',
    '[items.x]\nkind = "file"\npath = "/a"\ncontent = "x"\napply = [{ restrt = "y" }]\n',
    /:5: `items.x.apply\[0\].restrt` is not a known key; .*`restart`/,
  ],
  ['vm-web1.toml', '[items.x]\nkind = "file"\npath = "etc/motd"\ncontent = "x"\n', /:3: `items.x.path` must match/],
  [
    'vm-web1.toml',
    '[items.x]\nkind = "file"\npath = "/etc/motd"\ncontent = "x"\n',
    /:1: the file \/etc\/motd is set by item motd of .*default.toml:10 already/,
  ],
  [
    'vm-web1.toml',
    '[items.x]\nkind = "file"\npath = "/var/lib/pratique/agent"\ncontent = "x"\n',
    /item x may not write \/var\/lib\/pratique\/agent/,
  ],
  [
    'vm-web1.toml',
    '[items.x]\nkind = "file"\npath = "/a"\ncontent = "*"\nencoding = "base64"\n',
    /:4: .* must be base64/,
  ],
];

test('a mistake is trouble that names file, line and nearest key, and nothing else is lost by it', async (t) => {
  for (const [name, text, expected] of MISTAKES) {
    const { config } = await house(t, { 'default.toml': DEFAULT, [name]: text });
    const found = await config.resolve('web1');
    assert.match(found?.trouble.join('\n') ?? '', expected);
    assert.ok(found?.items.some(({ item }) => item === 'hostname'));
  }
});

const ODD_INTERFACES: readonly (readonly [string, RegExp])[] = [
  ['addresses = ["192.0.2.300/24"]', /interfaces\[0\].addresses\[0\]` must be an address with its prefix/],
  ['addresses = ["192.0.2.3/33"]', /must be an address with its prefix/],
  ['addresses = ["2001:db8::1/129"]', /must be an address with its prefix/],
  ['addresses = ["192.0.2.3/24", "192.0.2.3/24"]', /stands here twice/],
  ['addresses = ["192.0.2.3/24"]\ngateway4 = "2001:db8::1"', /must be an IPv4 address/],
  ['gateway4 = "192.0.2.1"', /needs an IPv4 address of the interface/],
  ['dns = ["ns1"]', /dns\[0\]` must be an IP address/],
];

test('addresses that cannot be are trouble; odd ones are remarks', async (t) => {
  const lan = (mac: string, rest: string) =>
    `[items.lan]\nkind = "network"\n[[items.lan.interfaces]]\nmac = "${mac}"\n${rest}\n`;
  const { config, write } = await house(t, {});
  for (const [rest, expected] of ODD_INTERFACES) {
    await write({ 'default.toml': lan('52:54:00:00:00:01', rest) });
    assert.match((await config.resolve('web1'))?.trouble.join('\n') ?? '', expected);
  }
  await write({ 'default.toml': lan('52:54:00:00:00:02', 'addresses = ["192.0.2.3/24"]\ngateway4 = "198.51.100.1"') });
  const found = await config.resolve('web1');
  assert.deepEqual(found?.trouble, []);
  assert.match(found?.remarks.join('\n') ?? '', /spec has no NIC 52:54:00:00:00:02/);
  assert.match(
    found?.remarks.join('\n') ?? '',
    /the gateway 198.51.100.1 of 52:54:00:00:00:02 is in none of its networks/,
  );
});

test('a file that everybody may write, and two files for the same, are trouble; a stray file is a remark', async (t) => {
  const { config, folder, write } = await house(t, { 'default.toml': DEFAULT, 'web1.toml': 'x' });
  const found = await config.resolve('web1');
  assert.deepEqual(found?.trouble, []);
  assert.match(found?.remarks.join('') ?? '', /not read, for it is not default, group-NAME or vm-NAME: web1.toml/);
  await chmod(join(folder, 'default.toml'), 0o666);
  assert.match((await config.resolve('web1'))?.trouble.join('') ?? '', /everybody may write it/);
  await chmod(join(folder, 'default.toml'), 0o644);
  await write({ 'default.yaml': '' });
  assert.match((await config.resolve('web1'))?.trouble.join('') ?? '', /are for the same/);
});

test('the examples of the page are what a VM can get', async (t) => {
  const page = await readFile(new URL('../../docs/guest-config.md', import.meta.url), 'utf8');
  const files = [...page.matchAll(/```toml\n# ((?:default|group-|vm-)[^\n]*)\n([^`]*)```/g)].map(
    ([, name = '', text = '']) => [name, text] as const,
  );
  assert.equal(files.length, 3);
  const secrets = { 'secrets/db-password': 'x-y-z-1\n', 'secrets/shop/license.key': 'l-i-c-1' };
  const { config } = await house(t, { ...Object.fromEntries(files), ...secrets });
  const found = await config.resolve('web1');
  assert.deepEqual([found?.trouble, found?.remarks], [[], []]);
  assert.deepEqual(
    found?.items.map(({ item }) => item),
    ['admins', 'hostname', 'lan', 'shop'],
  );
});

test("a document counts between the group and the VM's own file, and gets none of the host's secrets", async (t) => {
  const hostname = (name: string) => ({ kind: 'hostname', hostname: name });
  const document = {
    values: { domain: 'server.example.org' },
    items: { hostname: hostname('of-server'), second: { kind: 'file', path: '/s', content: 'x' } },
  };
  const files = {
    'default.toml': DEFAULT,
    'group-web.toml': '[items.hostname]\nkind = "hostname"\nhostname = "of-group"\n',
  };
  const { config, write } = await house(t, files, document);
  const find = async () => (await config.resolve('web1'))?.items.find(({ item }) => item === 'hostname');
  assert.deepEqual((await find())?.setting, hostname('of-server'));
  assert.equal((await find())?.origin.source, 'server');
  assert.deepEqual((await config.resolve('web1'))?.remarks, ['from afar']);
  await write({ 'vm-web1.toml': `[items.hostname]\nkind = "hostname"\nhostname = "own.\${domain}"\n` });
  assert.deepEqual((await find())?.setting, hostname('own.server.example.org'));

  const greedy = { items: { loot: { kind: 'file', path: '/loot', content: `\${password}` } } };
  const robbed = await house(
    t,
    { 'default.toml': WITH_SECRET, 'secrets/db/password': SECRET, 'secrets/key.bin': 'x' },
    greedy,
  );
  const found = await robbed.config.resolve('web1');
  assert.match(found?.trouble.join() ?? '', /serial 3: `items.loot.content` names `password`, a secret of this host/);
  assert.ok(!JSON.stringify(found?.items.filter(({ item }) => item !== 'app')).includes(SECRET));
});

test('values that would make a small text a huge one are trouble, and nothing is built up for it', async (t) => {
  const long = 'x'.repeat(100_000);
  const content = `\${long}`.repeat(100_000);
  const files = JSON.stringify({
    values: { long },
    items: { big: { kind: 'file', path: '/etc/big', content } },
  });
  const { config } = await house(t, { 'default.json': files });
  const startedMs = performance.now();
  const found = await config.resolve('web1');
  assert.match(found?.trouble.join() ?? '', /`items\.big\.content` is too long once its values are put in/);
  assert.ok(performance.now() - startedMs < 2_000);
});

test('more files than a guest keeps account of are trouble before anything is sent', async (t) => {
  const item = (index: number) => ({
    kind: 'product',
    product: 'p',
    files: Array.from({ length: 200 }, (_, file) => ({ path: `/etc/p/${index}-${file}`, content: '' })),
  });
  const items = Object.fromEntries(Array.from({ length: 51 }, (_, index) => [`p${index}`, item(index)]));
  const { config } = await house(t, { 'default.json': JSON.stringify({ items }) });
  assert.match((await config.resolve('web1'))?.trouble.join() ?? '', /all items together have more than 10000 files/);
});

test('a secret that a document brings is taken out of logs as one of the host is', async (t) => {
  const document = {
    values: { token: { secretText: 'brought-by-document' } },
    items: {
      a: { kind: 'file', path: '/etc/a', content: `t=\${token}` },
      b: { kind: 'file', path: '/etc/b', content: { secretText: 'whole-of-a-file\n' } },
    },
  };
  const { config } = await house(t, {}, document);
  assert.equal(redactText('brought-by-document whole-of-a-file'), 'brought-by-document whole-of-a-file');
  assert.deepEqual((await config.resolve('web1'))?.trouble, []);
  assert.doesNotMatch(redactText('brought-by-document whole-of-a-file'), /brought|whole/);
});
