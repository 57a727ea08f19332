// Tests of the configuration: what is read, in which order, and what its errors say.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { DEFAULT_POLICY } from '../src/model/policy.ts';
import { ConfigError, loadConfig } from './config.ts';
import { configJsonSchema } from './config-schema.ts';
import { fileOfPolicy, parseSettings, policyOfFile } from './policy-words.ts';

let folder = '';
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-config-'));
});
afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

const write = async (name: string, text: string): Promise<string> => {
  const path = join(folder, name);
  await mkdir(join(folder, 'conf.d'), { recursive: true });
  await writeFile(path, text);
  return path;
};
const load = async (path: string) => await loadConfig({ path, env: { HOME: folder }, uid: 1000 });
const failure = async (text: string): Promise<string> => {
  const path = await write('pratique.toml', text);
  const error = await load(path).catch((thrown: unknown) => thrown);
  assert.ok(error instanceof ConfigError, `no ConfigError for: ${text}`);
  assert.equal(error.code, 'usage/config');
  return error.message.replace(`${folder}/`, '');
};

test('an empty configuration works, for root and for an ordinary user', async () => {
  const user = await loadConfig({ env: { HOME: folder, XDG_RUNTIME_DIR: '/run/user/7' }, uid: 7 });
  assert.deepEqual(user.files, []);
  assert.equal(user.config.dataFolder, `${folder}/.local/share/pratique`);
  assert.equal(user.config.runFolder, '/run/user/7/pratique');
  assert.equal(user.config.policy.install, 'all');
  assert.deepEqual((await load(await write('empty.toml', ''))).config.vendors, []);
});

test('PRATIQUE_DATA and PRATIQUE_RUN win over the file', async () => {
  const path = await write('pratique.toml', 'dataFolder = "/srv/a"\nrunFolder = "/srv/b"\n');
  const { config } = await loadConfig({ path, env: { PRATIQUE_DATA: '/x/data', PRATIQUE_RUN: '/x/run' }, uid: 0 });
  assert.deepEqual([config.dataFolder, config.runFolder], ['/x/data', '/x/run']);
});

test('files of conf.d are read in order of their names: later keys win, vendors add up', async () => {
  const path = await write(
    'pratique.toml',
    'logLevel = "warn"\n[policy]\ninstall = "security"\nallowReboot = false\n[[vendors]]\nkind = "debian-apt"\nname = "one"\nsuites = ["bookworm"]\n',
  );
  await write('conf.d/20-late.toml', '[policy]\nallowReboot = true\n');
  await write(
    'conf.d/10-more.toml',
    'logLevel = "debug"\n[[vendors]]\nkind = "debian-apt"\nname = "two"\nsuites = ["trixie"]\n',
  );
  await write('conf.d/notes.txt', 'not read');
  const { config, files } = await load(path);
  assert.equal(config.logLevel, 'debug');
  assert.deepEqual([config.policy.install, config.policy.allowReboot], ['security', true]);
  assert.deepEqual(
    config.vendors.map(({ name }) => name),
    ['one', 'two'],
  );
  assert.deepEqual(
    files.map((file) => file.slice(folder.length + 1)),
    ['pratique.toml', 'conf.d/10-more.toml', 'conf.d/20-late.toml'],
  );
});

test('an unknown key names file, line and the nearest known key', async () => {
  assert.equal(
    await failure('# comment\ndiskRoots = [\n  "/a",\n  "/b",\n]\nlogLevle = "info"\n'),
    'pratique.toml:6: `logLevle` is not a known key; the nearest known key is `logLevel`',
  );
  assert.equal(
    await failure('[policy]\ninstall = "all"\n\nallowreboot = true\n'),
    'pratique.toml:4: `policy.allowreboot` is not a known key; the nearest known key is `allowReboot`',
  );
});

test('what looks like a table or a key inside a list or a long string does not mislead the line', async () => {
  assert.match(await failure('diskRoots = [\n  ["policy"]\n]\nlogLevle = "info"\n'), /^pratique\.toml:4: `logLevle`/);
  assert.match(await failure('dataFolder = """\nlogLevle = 1\n"""\nlogLevle = 2\n'), /^pratique\.toml:4: `logLevle`/);
});

test('an unknown key in the second of two vendors names the line in that vendor', async () => {
  const vendor = (name: string, extra: string) =>
    `[[vendors]]\nkind = "tuf"\nname = "${name}"\nmetadataUrl = "https://x/m"\ntargetsUrl = "https://x/t"\nrootPath = "/r"\n${extra}`;
  assert.equal(
    await failure(`${vendor('a', '')}${vendor('b', 'rootpth = "/x"\n')}`),
    'pratique.toml:13: `vendors[1].rootpth` is not a known key; the nearest known key is `rootPath`',
  );
});

test('wrong values, missing keys and unknown kinds name the key and what is expected', async () => {
  assert.equal(
    await failure('logLevel = "loud"'),
    'pratique.toml:1: `logLevel` must be one of "silent", "error", "warn", "info", "debug"',
  );
  assert.equal(
    await failure('\nstoreBudgetBytes = "much"'),
    'pratique.toml:2: `storeBudgetBytes` must be a whole number',
  );
  assert.equal(
    await failure('[[vendors]]\nkind = "rpm"'),
    'pratique.toml:2: `vendors[0].kind` must be one of "tuf", "debian-apt"',
  );
  assert.equal(
    await failure('\n[[vendors]]\nkind = "tuf"\nname = "x"'),
    'pratique.toml:2: `vendors[0].metadataUrl` is missing',
  );
  assert.match(await failure('a = 1\nb = ]'), /^pratique\.toml:2: /);
});

test('the same vendor name in two files is refused and both files are named', async () => {
  const text = '[[vendors]]\nkind = "debian-apt"\nname = "deb"\nsuites = ["bookworm"]\n';
  await write('conf.d/a.toml', text);
  assert.match(await failure(text), /conf\.d\/a\.toml: vendor deb is already in .*pratique\.toml$/);
});

test('a run folder whose socket path would not fit is refused', async () => {
  assert.match(await failure(`runFolder = "/${'r'.repeat(120)}"`), /too long a path for a unix socket/);
});

test('a file named by --config must exist', async () => {
  await assert.rejects(load(join(folder, 'absent.toml')), /absent\.toml: there is no such file/);
});

test('the shipped JSON Schema is up to date', async () => {
  const shipped = await readFile(new URL('./pratique.schema.json', import.meta.url), 'utf8');
  assert.deepEqual(JSON.parse(shipped), JSON.parse(configJsonSchema()), 'run: node proxy/generate.ts');
});

test('groups have names, patterns and a policy; files add keys to one another', async () => {
  const path = await write(
    'pratique.toml',
    '[policy]\ninstall = "security"\nmetadataAge = "36h"\n[groups.web]\nvms = ["web-*"]\npolicy = { install = "all" }\n',
  );
  await write('conf.d/a.toml', '[groups.web]\nvms = ["shop"]\n[groups.web.policy]\nrunDeadline = "90m"\n[groups.db]\n');
  const { config } = await load(path);
  assert.equal(config.policy.metadataAgeMaxMs, 36 * 3_600_000);
  assert.deepEqual(config.policyOfFiles, { install: 'security', metadataAgeMaxMs: 36 * 3_600_000 });
  assert.deepEqual(config.groups, {
    web: { vms: ['web-*', 'shop'], policy: { install: 'all', runDeadlineMs: 5_400_000 } },
    db: { vms: [], policy: {} },
  });
});

test('a wrong policy of a group names file, line and key', async () => {
  assert.equal(
    await failure('[groups.web.policy]\ninstal = "all"\n'),
    'pratique.toml:2: `groups.web.policy.instal` is not a known key; the nearest known key is `install`',
  );
  assert.match(await failure('\n[groups."Web Servers"]\n'), /^pratique\.toml:2: `groups\.Web Servers` must be a name/);
  assert.match(
    await failure('[policy]\nmetadataAge = "a day"\n'),
    /^pratique\.toml:2: `policy\.metadataAge` must match/,
  );
  assert.equal(
    await failure('[groups.web]\nvms = []\n[groups.web.policy]\nmetadataAge = "10s"\n'),
    'pratique.toml:4: `groups.web.policy.metadataAge` must be at least 1m',
  );
  assert.equal(
    await failure('[policy]\nrunDeadline = "8d"\n'),
    'pratique.toml:2: `policy.runDeadline` must be at most 168h',
  );
});

test('a name that two groups claim is refused', async () => {
  assert.match(
    await failure('[groups.a]\nvms = ["web-*"]\n[groups.b]\nvms = ["web-*"]\n'),
    /web-\* is named by both a and b/,
  );
});

test('milliseconds of the first version are still read, but not beside the words', async () => {
  const { config } = await load(await write('pratique.toml', '[policy]\nmetadataAgeMaxMs = 60000\n'));
  assert.equal(config.policy.metadataAgeMaxMs, 60_000);
  assert.match(
    await failure('[policy]\nmetadataAge = "1m"\nmetadataAgeMaxMs = 60000\n'),
    /^pratique\.toml:3: `policy\.metadataAgeMaxMs` says the same/,
  );
});

test('what `config show` prints can be read again', async () => {
  const policy = { ...DEFAULT_POLICY, metadataAgeMaxMs: 90_000, runDeadlineMs: 7 * 86_400_000 };
  const understood = policyOfFile(fileOfPolicy(policy));
  assert.deepEqual(understood, { kind: 'policy', policy });
});

test('settings of `vm set` are understood or refused by the pair', () => {
  assert.deepEqual(
    parseSettings([
      'install=listed',
      'packages=nginx, openssl*',
      'holds=[]',
      'metadataAge=48h',
      'overlay=true',
      'apt=',
    ]),
    {
      set: {
        install: 'listed',
        packages: ['nginx', 'openssl*'],
        holds: [],
        metadataAgeMaxMs: 172_800_000,
        overlay: true,
      },
      unset: ['apt'],
    },
  );
  assert.deepEqual(parseSettings(['group=']), { set: {}, unset: [], group: null });
  assert.deepEqual(parseSettings(['group=web']), { set: {}, unset: [], group: 'web' });
  for (const [pair, words] of [
    ['instal=all', /nearest is `install`/],
    ['metadataAgeMaxMs=5', /no key of a policy/],
    ['overlay=yes', /takes true or false/],
    ['install=some', /one of all, security, listed/],
    ['runDeadline=1s', /at least 1m/],
    ['overlay', /not of the form key=value/],
    ['toString=1', /no key of a policy/],
  ] as const) {
    assert.throws(() => parseSettings([pair]), words, pair);
  }
});
