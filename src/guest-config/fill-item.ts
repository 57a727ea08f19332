// One item with its named values and secrets put in: as the guest gets it, and as people may see it. Strict from here on.
import { CONFIG_FILE_CHARS_MAX, CONFIG_ITEM_BYTES_MAX } from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import { type Misfit, makeCheck, misfitText } from '../base/schema-check.ts';
import {
  BLANKED,
  type ConfigFileContent,
  type ConfigOrigin,
  type ConfigSetting,
  type GuestConfigItem,
  GuestConfigItemSchema,
  type Interface,
} from '../model/guest-config.ts';
import { faultOfInterface } from './addresses.ts';
import { GuestConfigError } from './error.ts';
import { faultAt, type Layer, type Path, type RawFile, type RawItem, type Secret } from './layer.ts';
import { type FilledText, fillText, type NamedValue } from './values.ts';
import type { VersionOf } from './version-key.ts';

/** An item twice, with what it was made from. */
export type FilledItem = {
  readonly item: GuestConfigItem;
  /** The same with `(secret)` in the place of every secret; a secret in base64 is blanked as a whole. */
  readonly shown: GuestConfigItem;
  readonly hasSecret: boolean;
  readonly origin: ConfigOrigin;
  /** Names of the values that went into it. */
  readonly used: readonly string[];
};

export type FillDeps = {
  readonly values: ReadonlyMap<string, NamedValue>;
  /** `at`: where it is named, for the message. */
  readonly readSecret: (name: string, at: string) => Promise<Buffer>;
  readonly versionOf: VersionOf;
};

const checkItem = makeCheck(GuestConfigItemSchema);

/** Throws GuestConfigError naming file, line and key; a secret that cannot be had is one, too. */
export async function fillItem(name: string, raw: RawItem, layer: Layer, deps: FillDeps): Promise<FilledItem> {
  const filler = new Filler(name, raw, layer, deps);
  const { clear, shown } = await filler.setting();
  const rest = {
    item: name,
    ...(raw.apply === undefined ? {} : { apply: raw.apply }),
    ...(raw.health === undefined ? {} : { health: raw.health }),
  };
  const version = deps.versionOf({ ...rest, setting: clear }, raw.version);
  const item = { ...rest, version, setting: clear };
  const found = checkItem(item);
  if (found !== null) throw strictMisfit(found, name, raw, layer);
  return {
    item,
    shown: { ...rest, version, setting: shown },
    hasSecret: filler.hasSecret,
    used: [...filler.used],
    origin: { source: layer.source, at: layer.at(['items', name]), layer: layer.name },
  };
}

/** The place as the operator wrote it: what the guest gets has a table more. */
function strictMisfit(found: Misfit, name: string, raw: RawItem, { at }: Layer): GuestConfigError {
  const [, ...below] = found.path[0] === 'setting' ? found.path : ['', ...found.path];
  const path = ['items', name, ...(raw.kind === 'file' && below[0] === 'file' ? below.slice(1) : below)];
  return new GuestConfigError('usage/guest-config', `${at(path)}: ${misfitText({ ...found, path })}`, {
    next: 'correct the file',
  });
}

type Twice<T> = { readonly clear: T; readonly shown: T };

/** Fills the texts of one item and remembers what went in. */
class Filler {
  readonly used = new Set<string>();
  hasSecret = false;
  /** Characters that its texts may still have. */
  #charsLeft = CONFIG_ITEM_BYTES_MAX;
  readonly #name: string;
  readonly #raw: RawItem;
  readonly #layer: Layer;
  readonly #deps: FillDeps;

  constructor(name: string, raw: RawItem, layer: Layer, deps: FillDeps) {
    this.#name = name;
    this.#raw = raw;
    this.#layer = layer;
    this.#deps = deps;
  }

  async setting(): Promise<Twice<ConfigSetting>> {
    const raw = this.#raw;
    switch (raw.kind) {
      case 'hostname':
        return same({ kind: 'hostname', hostname: this.#plain(raw.hostname, ['hostname']) });
      case 'network':
        return same({ kind: 'network', interfaces: this.#interfaces(raw.interfaces) });
      case 'file': {
        const { clear, shown } = await this.#file(raw, []);
        return { clear: { kind: 'file', file: clear }, shown: { kind: 'file', file: shown } };
      }
      case 'ssh-keys': {
        const keys = raw.keys.map((key, index) => this.#plain(key, ['keys', index]).trim());
        const exclusive = raw.exclusive === undefined ? {} : { exclusive: raw.exclusive };
        return same({ kind: 'ssh-keys', user: this.#plain(raw.user, ['user']), keys, ...exclusive });
      }
      case 'product': {
        const files: Twice<ConfigFileContent>[] = [];
        for (const [index, file] of raw.files.entries()) files.push(await this.#file(file, ['files', index]));
        const { product } = raw;
        return {
          clear: { kind: 'product', product, files: files.map(({ clear }) => clear) },
          shown: { kind: 'product', product, files: files.map(({ shown }) => shown) },
        };
      }
      default:
        return raw satisfies never;
    }
  }

  #interfaces(raw: Extract<RawItem, { kind: 'network' }>['interfaces']): Interface[] {
    return raw.map((given, index) => {
      const path: Path = ['interfaces', index];
      const one = (key: 'gateway4' | 'gateway6') => {
        const text = given[key];
        return text === undefined ? {} : { [key]: this.#plain(text, [...path, key]) };
      };
      const many = (key: 'addresses' | 'dns' | 'search') => {
        const texts = given[key];
        return texts === undefined ? {} : { [key]: texts.map((text, at) => this.#plain(text, [...path, key, at])) };
      };
      const filled: Interface = {
        ...given,
        mac: this.#plain(given.mac, [...path, 'mac']).toLowerCase(),
        ...one('gateway4'),
        ...one('gateway6'),
        ...many('addresses'),
        ...many('dns'),
        ...many('search'),
      };
      const fault = faultOfInterface(filled);
      if (fault !== null) throw this.#fault([...path, ...fault.path], fault.message);
      return filled;
    });
  }

  async #file(raw: RawFile, path: Path): Promise<Twice<ConfigFileContent>> {
    const { encoding, mode, owner, group } = raw;
    const rest = {
      path: this.#plain(raw.path, [...path, 'path']),
      ...(encoding === undefined ? {} : { encoding }),
      ...(mode === undefined ? {} : { mode: this.#plain(mode, [...path, 'mode']) }),
      ...(owner === undefined ? {} : { owner: this.#plain(owner, [...path, 'owner']) }),
      ...(group === undefined ? {} : { group: this.#plain(group, [...path, 'group']) }),
    };
    const content = await this.#content(raw, [...path, 'content']);
    return { clear: { ...rest, content: content.clear }, shown: { ...rest, content: content.shown } };
  }

  async #content({ content, encoding }: RawFile, path: Path): Promise<Twice<string>> {
    if (typeof content === 'object') {
      this.hasSecret = true;
      return { clear: await this.#secretContent(content, encoding, path), shown: BLANKED };
    }
    // A named value inside of base64 would be put in as text, and mean something else.
    if (encoding === 'base64') return same(this.#base64(content, path));
    const { clear, shown, hasSecret } = this.#fill(content, path);
    this.hasSecret ||= hasSecret;
    return { clear, shown };
  }

  #base64(text: string, path: Path): string {
    const packed = text.replace(/\s+/g, '');
    if (Buffer.from(packed, 'base64').toString('base64') === packed) return packed;
    throw this.#fault(path, 'must be base64, as `encoding` says');
  }

  async #secretContent(secret: Secret, encoding: 'base64' | undefined, path: Path): Promise<string> {
    if ('secretText' in secret)
      return encoding === 'base64' ? this.#base64(secret.secretText, path) : secret.secretText;
    const bytes = await this.#deps.readSecret(secret.secret, this.#layer.at(['items', this.#name, ...path]));
    if (encoding === 'base64') return bytes.toString('base64');
    const text = bytes.toString('utf8');
    if (Buffer.from(text, 'utf8').equals(bytes)) return text;
    throw this.#fault(path, `names the secret ${secret.secret}, which is not text; add encoding = "base64"`);
  }

  /** A text in which no secret may stand, because plans, messages and other programs see it. */
  #plain(text: string, path: Path): string {
    const { clear, hasSecret } = this.#fill(text, path);
    if (hasSecret) throw this.#fault(path, 'holds a secret; only the content of a file may');
    return clear;
  }

  #fill(text: string, path: Path): Omit<FilledText, 'used'> {
    if (this.#raw.verbatim === true) return { ...same(text), hasSecret: false };
    const { values } = this.#deps;
    const filled = fillText(text, values, Math.min(this.#charsLeft, CONFIG_FILE_CHARS_MAX));
    if ('fault' in filled) throw this.#fault(path, filled.fault);
    this.#charsLeft -= filled.clear.length;
    for (const name of filled.used) this.used.add(name);
    // Whoever signs documents must not learn what the host keeps for others by having it put into a guest of their own.
    const isOurs = (name: string) => values.get(name)?.isSecret === true && values.get(name)?.origin.source === 'file';
    const secret = this.#layer.source === 'server' ? filled.used.find(isOurs) : undefined;
    if (secret === undefined) return filled;
    throw this.#fault(path, `names \`${secret}\`, a secret of this host, which a document of the server may not have`);
  }

  #fault(path: Path, message: string): GuestConfigError {
    return faultAt(this.#layer.at, ['items', this.#name, ...path], printable(message, 400));
  }
}

const same = <T>(value: T): Twice<T> => ({ clear: value, shown: value });
