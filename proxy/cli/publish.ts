// pratique vendor publish …: one's own software as a signed repository that any web server can serve.
import { type Command, InvalidArgumentError, Option } from 'commander';
import { isoTime } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { printable } from '../../src/base/printable.ts';
import type { Publication } from '../../src/vendor/tuf/publication.ts';
import type { Shown, ShownRole } from '../../src/vendor/tuf/show.ts';
import { type Build, completeCommand } from './context.ts';
import type { Output } from './output.ts';
import { renderTable } from './table.ts';
import { sizeText } from './text.ts';

const ROLES = ['root', 'targets', 'snapshot', 'timestamp'] as const;
type Role = (typeof ROLES)[number];

type Common = { readonly repository?: string; readonly keys?: readonly string[] };
type PublishOptions = Common & {
  readonly rotate?: readonly Role[];
  readonly product?: string;
  readonly expires?: Numbers;
};
/** `role=number`, collected. */
type Numbers = Partial<Readonly<Record<Role, number>>>;
/** `role=folder`, collected: one new key for each. */
type Folders = Partial<Readonly<Record<Role, readonly string[]>>>;

const REPOSITORY = ['--repository <folder>', 'the folder to serve over HTTP'] as const;
const KEYS = ['--keys <folder...>', 'folders with private keys (*.pem)'] as const;

/** Adds `vendor publish` and the verbs below it. */
export function addPublishCommands(vendor: Command, build: Build): void {
  const publish = vendor
    .command('publish')
    .description('make and sign a TUF repository for your own software, or sign it again before it expires');
  addPublish(publish, build);
  addInit(publish, build);
  addRefresh(publish, build);
  addRotateKey(publish, build);
  addRequest(publish, build);
  addDelegate(publish, build);
  addRevoke(publish, build);
  addShow(publish, build);
}

function addPublish(publish: Command, build: Build): void {
  publish
    .argument('[source]', 'a folder with release.json and files/, or a folder of such folders; none: only sign again')
    .option(...REPOSITORY)
    .option('--keys <folder...>', 'folders with the private keys; made in the first on first use; keep a copy offline')
    .option('--product <name>', 'publish as the team to which this product was delegated')
    .addOption(expiresOption('of what is signed now'))
    .addOption(new Option('--rotate <role...>', 'give these roles new keys').choices([...ROLES]));
  const example = 'pratique vendor publish ./release-2.0.0 --repository /srv/tuf --keys /root/tuf-keys';
  completeCommand<PublishOptions>(publish, build, example, async ({ output, clock }, [source], options) => {
    const { publishFolder } = await import('../../src/vendor/tuf/publish.ts');
    const { rotate = [], product, expires } = options;
    const published = await publishFolder({
      source: source ?? null,
      ...placeOf(options),
      rotate,
      clock,
      ...(product === undefined ? {} : { product }),
      ...(expires === undefined ? {} : { expiresDays: expires }),
    });
    output.show(published, () => publicationText(published, output));
    return undefined;
  });
}

function addInit(publish: Command, build: Build): void {
  const command = publish
    .command('init')
    .description('make an empty repository, with several keys for a role if you like')
    .option(...REPOSITORY)
    .option('--keys <folder...>', 'the first is for the keys of roles that --role-keys does not name')
    .option('--role-keys <role=folder...>', 'one new key for each time a role is named, in that folder', collectFolders)
    .option('--threshold <role=count...>', 'how many keys of a role must sign; else 1', collectNumbers)
    .addOption(expiresOption('from now on'));
  const example =
    'pratique vendor publish init --repository /srv/tuf --keys /root/online --role-keys root=/mnt/a root=/mnt/b --threshold root=2';
  type Init = Common & { readonly roleKeys?: Folders; readonly threshold?: Numbers; readonly expires?: Numbers };
  completeCommand<Init>(command, build, example, async ({ output, clock }, _args, options) => {
    const { initRepository } = await import('../../src/vendor/tuf/publish-root.ts');
    const { roleKeys, threshold, expires } = options;
    const published = await initRepository({
      ...placeOf(options),
      clock,
      ...(roleKeys === undefined ? {} : { roleFolders: roleKeys }),
      ...(threshold === undefined ? {} : { thresholds: threshold }),
      ...(expires === undefined ? {} : { expiresDays: expires }),
    });
    output.show(published, () => `The repository is made.\n${rootText(published)}`);
    return undefined;
  });
}

function addRefresh(publish: Command, build: Build): void {
  const command = publish
    .command('refresh')
    .description('sign timestamp and snapshot again, with their keys only; for cron, at least once a week')
    .option(...REPOSITORY)
    .option(...KEYS);
  const example = 'pratique vendor publish refresh --repository /srv/tuf --keys /root/online';
  completeCommand<Common>(command, build, example, async ({ output, clock }, _args, options) => {
    const { refreshRepository } = await import('../../src/vendor/tuf/publish.ts');
    const published = await refreshRepository({ ...placeOf(options), clock });
    for (const warning of published.warnings) output.warn(warning);
    output.done(published, `signed again; valid until ${published.expires}`);
    return undefined;
  });
}

function addRotateKey(publish: Command, build: Build): void {
  const command = publish
    .command('rotate-key')
    .description('replace a key, also a lost or stolen one; clients follow by themselves')
    .option(...REPOSITORY)
    .option(...KEYS)
    .addOption(new Option('--role <role>', 'whose key').choices([...ROLES]).makeOptionMandatory())
    .option('--key-id <id>', 'the beginning of the id of the key to replace, if the role has several')
    .option('--into <folder>', 'where the new key goes; else the first folder of --keys');
  const example =
    'pratique vendor publish rotate-key --role root --key-id 3f9c --into /mnt/new --repository … --keys …';
  type Rotate = Common & { readonly role: Role; readonly keyId?: string; readonly into?: string };
  completeCommand<Rotate>(command, build, example, async ({ output, clock }, _args, options) => {
    const { rotateKey } = await import('../../src/vendor/tuf/publish-root.ts');
    const { role, keyId = null, into = null } = options;
    const result = await rotateKey({ ...placeOf(options), clock, role, keyId, into });
    output.show(result, () => {
      const key = `${result.key.id.slice(0, 8)} (${printable(result.key.path, 1_000)})`;
      return `The ${role} key ${result.replaced} is replaced by ${key}.\n${rootText(result.publication)}`;
    });
    return undefined;
  });
}

function addRequest(publish: Command, build: Build): void {
  const command = publish
    .command('request')
    .description("ask for a product of somebody else's repository: makes a file for its owner, no secret is in it")
    .requiredOption('--product <name>', 'the product')
    .option('--keys <folder...>', "the team's keys; one is made in a folder that holds none")
    .option('--threshold <count>', 'how many of the keys must sign', wholeNumber, 1)
    .option('--repository <folder>', 'a copy of the repository, if the product is delegated there already')
    .requiredOption('--out <file>', 'the file to write');
  const example = 'pratique vendor publish request --product hello --keys ./team-keys --out hello.request.json';
  type Ask = Common & { readonly product: string; readonly threshold: number; readonly out: string };
  completeCommand<Ask>(command, build, example, async ({ output, clock }, _args, options) => {
    const { requestDelegation } = await import('../../src/vendor/tuf/delegate.ts');
    const { product, threshold, out, repository = null } = options;
    const keys = needed(options.keys, '--keys');
    const result = await requestDelegation({ product, threshold, out, repository, keys, clock });
    output.show(result, () => {
      const ids = result.keys.map(({ id }) => id.slice(0, 8)).join(', ');
      return `Give ${printable(result.path, 1_000)} to the owner of the repository, and tell them the keys: ${ids}`;
    });
    return undefined;
  });
}

function addDelegate(publish: Command, build: Build): void {
  const command = publish
    .command('delegate')
    .description('let a team sign the releases of its product, and nothing else, as its request asks')
    .argument('<request>', 'the file that `publish request` made')
    .option(...REPOSITORY)
    .option(...KEYS);
  const example = 'pratique vendor publish delegate hello.request.json --repository /srv/tuf --keys /root/keys';
  completeCommand<Common>(command, build, example, async ({ output, clock }, [request = ''], options) => {
    const { delegateProduct } = await import('../../src/vendor/tuf/delegate.ts');
    const result = await delegateProduct({ ...placeOf(options), request, clock });
    output.show(result, () => {
      const keys = `${result.threshold} of ${result.keys.length} keys (${result.keys.join(', ')})`;
      return `${result.product} is signed by ${keys} from now on. Ask the team whether these are its keys.`;
    });
    return undefined;
  });
}

function addRevoke(publish: Command, build: Build): void {
  const command = publish
    .command('revoke')
    .description('take a delegated product back: its releases are on offer no more')
    .requiredOption('--product <name>', 'the product')
    .option(...REPOSITORY)
    .option(...KEYS);
  const example = 'pratique vendor publish revoke --product hello --repository /srv/tuf --keys /root/keys';
  completeCommand<Common & { readonly product: string }>(
    command,
    build,
    example,
    async ({ output, clock }, _args, options) => {
      const { revokeProduct } = await import('../../src/vendor/tuf/delegate.ts');
      const published = await revokeProduct({ ...placeOf(options), product: options.product, clock });
      output.done(published, `${options.product} is delegated no more`);
      return undefined;
    },
  );
}

function addShow(publish: Command, build: Build): void {
  const command = publish
    .command('show')
    .description('explain a repository: who may sign what, how long it is valid, which keys are here')
    .option(...REPOSITORY)
    .option('--keys <folder...>', 'folders to look for keys in');
  const example = 'pratique vendor publish show --repository /srv/tuf --keys /root/tuf-keys';
  completeCommand<Common>(command, build, example, async ({ output, clock }, _args, options) => {
    const { showRepository } = await import('../../src/vendor/tuf/show.ts');
    const repository = needed(options.repository, '--repository');
    const shown = await showRepository({ repository, keys: options.keys ?? [], clock });
    output.show(shown, () => shownText(shown, output));
    return undefined;
  });
}

/** Not `requiredOption`: the verbs below `publish` would have to give these options twice. */
function needed<T>(value: T | undefined, option: string): T {
  if (value !== undefined) return value;
  throw new PratiqueError('usage/command-line', `${option} is missing`, { next: 'see --help after the command' });
}

function placeOf(options: Common): { readonly repository: string; readonly keys: readonly string[] } {
  return { repository: needed(options.repository, '--repository'), keys: needed(options.keys, '--keys') };
}

function expiresOption(when: string): Option {
  return new Option('--expires <role=days...>', `days until a role's metadata expire, ${when}`).argParser(
    collectNumbers,
  );
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= 1 && value <= 36_500) return value;
  throw new InvalidArgumentError('It must be a whole number of at least 1.');
}

function split(text: string): { readonly role: Role; readonly value: string } {
  const [name, ...rest] = text.split('=');
  const role = ROLES.find((each) => each === name);
  const value = rest.join('=');
  if (role !== undefined && value !== '') return { role, value };
  throw new InvalidArgumentError(`It must be one of ${ROLES.join(', ')}, then "=" and a value.`);
}

function collectNumbers(text: string, before: Numbers = {}): Numbers {
  const { role, value } = split(text);
  return { ...before, [role]: wholeNumber(value) };
}

function collectFolders(text: string, before: Folders = {}): Folders {
  const { role, value } = split(text);
  return { ...before, [role]: [...(before[role] ?? []), value] };
}

function rootText(published: Publication): string {
  return `Operators need its root by a trusted way: ${printable(published.rootPath, 1_000)}`;
}

function publicationText(published: Publication, output: Output): string {
  const head = [{ title: 'PRODUCT' }, { title: 'VERSION' }, { title: 'SIZE', alignRight: true }, { title: 'FILE' }];
  const rows = published.targets.map(({ product, version, sizeBytes, path }) => [
    product,
    version,
    sizeText(sizeBytes),
    path,
  ]);
  const ifEmpty = 'Nothing new; everything is signed again.';
  const table = renderTable(head, rows, { columns: output.columns, ifEmpty });
  const state = published.isVisible
    ? `The repository offers ${published.targetsTotal} releases; sign it again before ${printable(published.expires)}.`
    : 'It is signed; clients see it after the next `publish refresh` of whoever holds the keys of snapshot and timestamp.';
  const warnings = published.warnings.map((warning) => `Note: ${printable(warning)}.`);
  return [table, state, ...warnings, rootText(published)].join('\n');
}

function shownText({ roles }: Shown, output: Output): string {
  const head = ['ROLE', 'VERSION', 'EXPIRES', 'SIGNED BY', 'SPEAKS FOR', 'RELEASES'].map((title) => ({ title }));
  const rows = roles.map((role) => [
    role.role,
    `${role.version}${role.isVisible ? '' : ' (not visible yet)'}`,
    `${isoTime(Date.parse(role.expires)).slice(0, 10)}${role.state === 'valid' ? '' : ` (${role.state})`}`,
    signersText(role),
    role.paths?.join(' ') ?? '',
    role.releases === null ? '' : String(role.releases),
  ]);
  const table = renderTable(head, rows, { columns: output.columns, ifEmpty: 'Nothing is published yet.' });
  const here = roles.filter(({ maySign }) => maySign).map(({ role }) => role);
  const files = roles.flatMap(({ keys }) => keys).filter(({ path }) => path !== null);
  const found = new Map(files.map(({ id, path }) => [id, `${id.slice(0, 8)} is ${printable(path ?? '', 1_000)}`]));
  const rest = here.length === 0 ? [] : [`With the keys given, you may sign: ${here.join(', ')}.`];
  return [table, ...found.values(), ...rest].join('\n');
}

const signersText = ({ threshold, keys }: ShownRole): string =>
  `${threshold} of ${keys.length}: ${keys.map(({ id }) => printable(id).slice(0, 8)).join(' ')}`;
