// The vault: one token per license, on this host only, sealed at rest. The only file that sees a token in clear.
//
//   put ─► current ◄─ promote ─ next ◄─ stage        two slots: the new token is tried before the old one is gone
//
// An opened token serves for VAULT_OPEN_MS, so that a fleet which starts at once opens it a few times and not a thousand; then its
// buffer is zeroed. As long as one may still be in somebody's words (VAULT_REDACT_MS after its last use), the redactor looks for it.
import { randomBytes } from 'node:crypto';
import { chmod, lstat, mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { syncFolder } from '../base/durable-file.ts';
import { assert, describeError } from '../base/errors.ts';
import type { HttpHeaders, RequestInterceptor } from '../base/http-fetch.ts';
import {
  LICENSE_TOKEN_BYTES_MAX,
  LICENSE_TOKEN_CHARS_MIN,
  LICENSE_TOKEN_TAIL_CHARS_MIN,
  VAULT_LICENSES_MAX,
  VAULT_OPEN_MS,
  VAULT_REDACT_MS,
} from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { printable } from '../base/printable.ts';
import { rememberSecret } from '../base/redact.ts';
import { LICENSE_ID_PATTERN } from '../model/license.ts';
import { LicenseError } from './license-error.ts';
import {
  KEY_FILE_WARNING,
  makeKeyFileSealer,
  makeSystemdSealer,
  probeSystemdSealer,
  type RunSealer,
  runSystemdCreds,
  type SealedBy,
  type Sealer,
} from './seal.ts';
import { spellingsOf } from './spellings.ts';
import {
  checkTokenOrigins,
  checkTokenPlace,
  mayCarryToken,
  type TokenOrigins,
  type TokenPlace,
} from './token-place.ts';
import {
  listVaultFiles,
  readVaultFile,
  removeVaultFile,
  type SealedSlot,
  type VaultFile,
  writeVaultFile,
} from './vault-file.ts';

/** `current` is used; `next` was given for a rotation and is not used until it is promoted. */
export type SlotName = 'current' | 'next';

export type SlotView = {
  readonly slot: SlotName;
  /** Empty for a token that is too short to show a part of. */
  readonly lastFour: string;
  readonly sealedBy: SealedBy;
  readonly addedAtMs: number;
};

/** What may be shown of a license's tokens: of the one in use (or the only one), and both slots. */
export type VaultEntry = Omit<SlotView, 'slot'> & {
  readonly license: string;
  readonly slots: readonly SlotView[];
  /** What the seal does not protect from; null where there is nothing to say. */
  readonly warning: string | null;
};

/** What is to be sent with a token in it. */
export type UnsignedRequest = {
  readonly slot: SlotName;
  readonly origin: string;
  readonly place: TokenPlace;
  readonly headers: HttpHeaders;
  readonly body?: unknown;
};

export type TokenRequest = {
  readonly headers: HttpHeaders;
  /** JSON text. */
  readonly body: string | undefined;
  /** Whether an answer has the token in it, in any of its spellings: such an answer is shown to nobody. */
  readonly isEchoed: (answer: string) => boolean;
};

export type Vault = {
  /**
   * Keeps a license's token, in the place of the one it has; a staged one stays. The bytes given are zeroed. Throws LicenseError
   * `usage/license-token` (too short, too long, not printable ASCII) or `host-fault/vault`; then all is as before.
   */
  readonly put: (license: string, token: Uint8Array) => Promise<VaultEntry>;
  /** Keeps a second token beside the one in use, if there is one, until it is promoted or dropped. Throws as `put`. */
  readonly stage: (license: string, token: Uint8Array) => Promise<VaultEntry>;
  /** The staged token is the one in use, and the old one is gone, in one step. Throws LicenseError `conflict/license-slot`. */
  readonly promote: (license: string) => Promise<VaultEntry>;
  /** Forgets the staged token, or the only one, and the license with it. Throws LicenseError `conflict/license-slot`. */
  readonly drop: (license: string, slot: SlotName) => Promise<void>;
  /** Forgets a license's tokens. Done when there are none, also when there never were. */
  readonly remove: (license: string) => Promise<void>;
  /** Throws LicenseError `not-found/license`, or `host-fault/vault` for one whose file is damaged. */
  readonly describe: (license: string) => VaultEntry;
  /** All that can be read, by id. */
  readonly list: () => readonly VaultEntry[];
  /** How the next token will be sealed, for the doctor; `reason`: why not by systemd-creds. */
  readonly sealing: () => Promise<{ readonly sealedBy: SealedBy; readonly reason: string | null }>;
  /** For downloads: adds the token to requests of allowed origins, and leaves all others as they are. Throws LicenseError `usage/license-…`. */
  readonly interceptorFor: (
    license: string,
    where: TokenOrigins & { readonly place: TokenPlace },
  ) => RequestInterceptor;
  /** Puts a token into a request to an allowed origin. Throws LicenseError `refused/license-origin`, `not-found/license`, `host-fault/vault`. */
  readonly attach: (license: string, allowed: TokenOrigins, request: UnsignedRequest) => Promise<TokenRequest>;
  /** Zeroes what is open. */
  readonly close: () => void;
};

export type VaultOptions = {
  /** Made with mode 0700 when absent; its parent must be there. */
  readonly folder: string;
  readonly clock: Clock;
  readonly log: Log;
  /** systemd-creds, or in tests what stands for a host without it. */
  readonly runSealer?: RunSealer;
};

/** Opens the vault; tokens stay sealed. Throws LicenseError `host-fault/vault`. */
export async function openVault(options: VaultOptions): Promise<Vault> {
  const { folder, log } = options;
  await makeFolder(folder);
  const files = new Map<string, VaultFile>();
  const damaged = new Map<string, string>();
  for (const license of await listVaultFiles(folder)) {
    try {
      files.set(license, await readVaultFile(folder, license));
    } catch (error) {
      damaged.set(license, describeError(error));
      log.error({ license, problem: describeError(error) }, 'the token of a license cannot be read');
    }
  }
  return new OpenedVault(options, files, damaged);
}

async function makeFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    await syncFolder(dirname(folder));
    const stats = await lstat(folder);
    const isOurs = stats.isDirectory() && stats.uid === process.getuid?.();
    if (!isOurs) throw new LicenseError('host-fault/vault', `${folder} is not a folder of our own`);
    if ((stats.mode & 0o077) !== 0) await chmod(folder, 0o700);
  } catch (cause) {
    if (cause instanceof LicenseError) throw cause;
    throw new LicenseError('host-fault/vault', `the vault ${folder} cannot be made`, { cause });
  }
}

/** A token in clear, for a short time. */
type OpenToken = { readonly bytes: Buffer; readonly untilMs: number };

class OpenedVault implements Vault {
  readonly #options: VaultOptions;
  readonly #files: Map<string, VaultFile>;
  readonly #damaged: Map<string, string>;
  readonly #sealers: Readonly<Record<SealedBy, Sealer>>;
  /** By slot id. */
  readonly #open = new Map<string, OpenToken>();
  readonly #opening = new Map<string, Promise<OpenToken>>();
  readonly #redacted = new Map<string, () => void>();
  #probe: Promise<string | null> | null = null;
  /** Changes happen one after another. */
  #tail: Promise<unknown> = Promise.resolve();

  constructor(options: VaultOptions, files: Map<string, VaultFile>, damaged: Map<string, string>) {
    this.#options = options;
    this.#files = files;
    this.#damaged = damaged;
    this.#sealers = {
      'systemd-creds': makeSystemdSealer(options.runSealer),
      'key-file': makeKeyFileSealer(options.folder),
    };
  }

  // ---- Tokens come and go -------------------------------------------------------------------------------------------

  put = async (license: string, token: Uint8Array): Promise<VaultEntry> =>
    await this.#sealAndWrite(license, token, (slot, old) => ({ ...old, current: slot }));

  stage = async (license: string, token: Uint8Array): Promise<VaultEntry> =>
    await this.#sealAndWrite(license, token, (slot, old) => ({ ...old, next: slot }));

  promote = async (license: string): Promise<VaultEntry> =>
    await this.#inTurn(async () => {
      const { next, ...file } = this.#file(license);
      if (next === undefined) {
        throw new LicenseError('conflict/license-slot', `the license ${license} has no second token`, {
          next: `give it first: pratique license rotate ${license}`,
        });
      }
      return await this.#write({ ...file, current: next });
    });

  drop = async (license: string, slot: SlotName): Promise<void> =>
    await this.#inTurn(async () => {
      const { next, current, ...file } = this.#file(license);
      if (slot === 'next' && next === undefined) return;
      if (slot === 'next' && current !== undefined) return void (await this.#write({ ...file, current }));
      if (next === undefined || current === undefined) return await this.#remove(license);
      throw new LicenseError('conflict/license-slot', `the license ${license} has a second token that is not in use`, {
        next: 'promote that one, or drop it first',
      });
    });

  remove = async (license: string): Promise<void> => await this.#inTurn(async () => await this.#remove(license));

  async #sealAndWrite(
    license: string,
    token: Uint8Array,
    change: (slot: SealedSlot, old: VaultFile) => VaultFile,
  ): Promise<VaultEntry> {
    checkId(license);
    const tokenInClear = tokenOf(token);
    const id = randomBytes(8).toString('hex');
    this.#redact(id, tokenInClear);
    try {
      return await this.#inTurn(async () => {
        if (!this.#files.has(license) && this.#files.size >= VAULT_LICENSES_MAX)
          throw new LicenseError('usage/licenses', `a host has at most ${VAULT_LICENSES_MAX} licenses`);
        const { sealedBy } = await this.sealing();
        const sealed = await this.#sealers[sealedBy].seal(sealName(license, id), tokenInClear);
        const isLong = tokenInClear.length >= LICENSE_TOKEN_TAIL_CHARS_MIN;
        const lastFour = isLong ? tokenInClear.subarray(-4).toString('latin1') : '';
        const addedAtMs = Math.trunc(this.#options.clock.nowMs());
        const old = this.#files.get(license) ?? newFile(license);
        return await this.#write(change({ id, sealedBy, sealed, addedAtMs, lastFour }, old));
      });
    } finally {
      tokenInClear.fill(0);
    }
  }

  async #write(file: VaultFile): Promise<VaultEntry> {
    const { license } = file;
    try {
      await writeVaultFile(this.#options.folder, file);
    } catch (cause) {
      throw new LicenseError('host-fault/vault', `the token of ${license} could not be written; all is as before`, {
        cause,
        next: 'check the free space and try again',
      });
    }
    const old = this.#files.get(license);
    this.#files.set(license, file);
    this.#damaged.delete(license);
    for (const slot of [old?.current, old?.next])
      if (slot !== undefined && slot.id !== file.current?.id && slot.id !== file.next?.id) this.#shut(slot.id);
    return viewOf(file);
  }

  async #remove(license: string): Promise<void> {
    checkId(license);
    const old = this.#files.get(license);
    await removeVaultFile(this.#options.folder, license).catch((cause: unknown) => {
      throw new LicenseError('host-fault/vault', `the token of ${license} could not be removed`, { cause });
    });
    this.#files.delete(license);
    this.#damaged.delete(license);
    for (const slot of [old?.current, old?.next]) if (slot !== undefined) this.#shut(slot.id);
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#tail.then(work);
    this.#tail = done.catch(() => {}); // Whoever asked has the error.
    return done;
  }

  // ---- What may be shown --------------------------------------------------------------------------------------------

  describe = (license: string): VaultEntry => viewOf(this.#file(license));

  list = (): readonly VaultEntry[] =>
    [...this.#files.values()].map(viewOf).sort((a, b) => (a.license < b.license ? -1 : 1));

  sealing = async (): Promise<{ readonly sealedBy: SealedBy; readonly reason: string | null }> => {
    this.#probe ??= probeSystemdSealer(this.#options.runSealer ?? runSystemdCreds).then((reason) => {
      if (reason !== null) this.#options.log.warn({ reason }, `tokens will be ${KEY_FILE_WARNING}`);
      return reason;
    });
    const reason = await this.#probe;
    return { sealedBy: reason === null ? 'systemd-creds' : 'key-file', reason };
  };

  #file(license: string): VaultFile {
    const file = this.#files.get(license);
    if (file !== undefined) return file;
    const problem = this.#damaged.get(license);
    const next = `give the token: pratique license rotate ${printable(license)}`;
    if (problem === undefined)
      throw new LicenseError('not-found/license', `no token for ${printable(license)}`, { next });
    throw new LicenseError('host-fault/vault', `the token of ${license} cannot be read: ${problem}`, { next });
  }

  // ---- Tokens in clear ----------------------------------------------------------------------------------------------

  interceptorFor(license: string, where: TokenOrigins & { readonly place: TokenPlace }): RequestInterceptor {
    const { place } = where;
    checkTokenOrigins(where);
    checkTokenPlace(place);
    return async ({ origin }, headers) => {
      if (!mayCarryToken(origin, where)) return headers;
      const attached = await this.attach(license, where, { slot: 'current', origin, place, headers });
      return attached.headers;
    };
  }

  attach = async (license: string, allowed: TokenOrigins, request: UnsignedRequest): Promise<TokenRequest> => {
    const { slot, origin, place, headers, body } = request;
    if (!mayCarryToken(origin, allowed)) {
      throw new LicenseError('refused/license-origin', `the token of ${license} does not go to ${printable(origin)}`, {
        next: "if that is right, add it to the license's origins",
      });
    }
    checkTokenPlace(place);
    const tokenInClear = await this.#clear(license, slot);
    const inBody = place.kind === 'body' ? withField(body, place.field, tokenInClear) : body;
    return {
      headers: place.kind === 'body' ? headers : { ...headers, ...headerOf(place, tokenInClear) },
      body: inBody === undefined ? undefined : JSON.stringify(inBody),
      isEchoed: (answer) => spellingsOf(tokenInClear).some((spelling) => answer.includes(spelling)),
    };
  };

  async #clear(license: string, slot: SlotName): Promise<string> {
    const sealed = this.#file(license)[slot];
    if (sealed === undefined) throw new LicenseError('not-found/license', `the license ${license} has no second token`);
    const known = this.#open.get(sealed.id);
    const isOpen = known !== undefined && this.#options.clock.monotonicMs() < known.untilMs;
    const token = isOpen ? known : await this.#openOnce(license, sealed);
    // Zeroed between its opening and now: the license has another token since.
    if (token.bytes[0] === 0)
      throw new LicenseError('conflict/license-token', `the token of ${license} was changed just now`);
    this.#redact(sealed.id, token.bytes);
    return token.bytes.toString('latin1');
  }

  /** However many ask at once, a token is opened once. */
  async #openOnce(license: string, sealed: SealedSlot): Promise<OpenToken> {
    const running = this.#opening.get(sealed.id);
    if (running !== undefined) return await running;
    const opening = this.#unseal(license, sealed).finally(() => this.#opening.delete(sealed.id));
    this.#opening.set(sealed.id, opening);
    return await opening;
  }

  async #unseal(license: string, { id, sealedBy, sealed }: SealedSlot): Promise<OpenToken> {
    const { clock } = this.#options;
    const bytes = await this.#sealers[sealedBy].open(sealName(license, id), sealed);
    const token: OpenToken = { bytes, untilMs: clock.monotonicMs() + VAULT_OPEN_MS };
    this.#shut(id);
    this.#open.set(id, token);
    clock.after(VAULT_OPEN_MS, () => {
      if (this.#open.get(id) === token) this.#shut(id);
    });
    return token;
  }

  #shut(id: string): void {
    this.#open.get(id)?.bytes.fill(0);
    this.#open.delete(id);
  }

  /** From now on and for a while the redactor knows this token. */
  #redact(id: string, token: Buffer): void {
    const { forget } = rememberSecret(token.toString('latin1'));
    this.#redacted.get(id)?.();
    const cancel = this.#options.clock.after(VAULT_REDACT_MS, () => this.#redacted.get(id)?.());
    this.#redacted.set(id, () => {
      cancel();
      forget();
      this.#redacted.delete(id);
    });
  }

  close = (): void => {
    for (const id of [...this.#open.keys()]) this.#shut(id);
    for (const forget of [...this.#redacted.values()]) forget();
  };
}

const sealName = (license: string, id: string): string => `pratique-license-${license}-${id}`;

const newFile = (license: string): VaultFile => ({ format: 'pratique.vault/1', license });

function checkId(license: string): void {
  if (new RegExp(LICENSE_ID_PATTERN).test(license)) return;
  throw new LicenseError('usage/license-id', `"${printable(license)}" cannot name a license`, {
    next: 'use lower-case letters, digits, dots, dashes and underscores, at most 64',
  });
}

/** A copy without the newline that an editor or `echo` leaves; what was given is zeroed. */
function tokenOf(given: Uint8Array): Buffer {
  const newline = given.at(-1) !== 0x0a ? 0 : given.at(-2) === 0x0d ? 2 : 1;
  const token = Buffer.from(given.subarray(0, given.length - newline));
  given.fill(0);
  const problem =
    token.length > LICENSE_TOKEN_BYTES_MAX
      ? `is longer than ${LICENSE_TOKEN_BYTES_MAX} bytes`
      : token.length < LICENSE_TOKEN_CHARS_MIN
        ? `is shorter than ${LICENSE_TOKEN_CHARS_MIN} characters`
        : token.some((byte) => byte < 0x21 || byte > 0x7e)
          ? 'has spaces, line breaks or letters that are not plain ASCII'
          : null;
  if (problem === null) return token;
  token.fill(0);
  throw new LicenseError('usage/license-token', `the token ${problem}`, {
    next: 'give the token alone, on one line, as the vendor wrote it',
  });
}

function viewOf({ license, current, next }: VaultFile): VaultEntry {
  const slotOf = (slot: SlotName, { lastFour, sealedBy, addedAtMs }: SealedSlot): SlotView => ({
    slot,
    lastFour,
    sealedBy,
    addedAtMs,
  });
  const slots = [
    ...(current === undefined ? [] : [slotOf('current', current)]),
    ...(next === undefined ? [] : [slotOf('next', next)]),
  ];
  const [first] = slots;
  assert(first !== undefined, 'a license in the vault has a token');
  const { lastFour, sealedBy, addedAtMs } = first;
  const warning = slots.some((each) => each.sealedBy === 'key-file') ? KEY_FILE_WARNING : null;
  return { license, lastFour, sealedBy, addedAtMs, slots, warning };
}

function headerOf(place: Extract<TokenPlace, { kind: 'header' }>, value: string): HttpHeaders {
  return 'name' in place ? { [place.name.toLowerCase()]: value } : { authorization: `${place.scheme} ${value}` };
}

/** The body with one field more, its outer objects made where they are not there. */
function withField(body: unknown, [name, ...inner]: readonly string[], value: string): unknown {
  if (name === undefined) return value;
  const outer: Record<string, unknown> = typeof body === 'object' && body !== null ? { ...body } : {};
  return { ...outer, [name]: withField(outer[name], inner, value) };
}
