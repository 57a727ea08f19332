// The host's licenses: what an operator said of each, its sealed token, its server, and the seats of VMs; looked after as time passes.
import { randomInt } from 'node:crypto';
import type { AuditRecord } from '../src/audit/record.ts';
import { type Clock, trustedNowMs } from '../src/base/clock.ts';
import { describeError, messageChain, PratiqueError } from '../src/base/errors.ts';
import type { RequestInterceptor } from '../src/base/http-fetch.ts';
import { LICENSE_USE_KEPT_MS, LICENSE_VALIDATE_MS } from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import { counted, printable } from '../src/base/printable.ts';
import { redactText } from '../src/base/redact.ts';
import type { DatabaseSync } from '../src/base/sqlite.ts';
import { licenseInterceptor } from '../src/license/download-token.ts';
import { makeLicenseTransport } from '../src/license/http-transport.ts';
import { readKeygenKey } from '../src/license/keygen-answer.ts';
import { makeKeygenServer } from '../src/license/keygen-server.ts';
import { type LeaseBook, openLeaseBook, REVOKED_HERE } from '../src/license/lease-book.ts';
import { makeLanes } from '../src/license/lease-lanes.ts';
import type { LeasePolicy } from '../src/license/lease-policy.ts';
import { LicenseError } from '../src/license/license-error.ts';
import type { LicenseServer } from '../src/license/license-server.ts';
import { makePratiqueServer } from '../src/license/pratique-server.ts';
import { readServerKeys } from '../src/license/signed-answer.ts';
import { checkTokenOrigins, checkTokenPlace, type TokenPlace } from '../src/license/token-place.ts';
import type { LicenseTransport } from '../src/license/transport.ts';
import type { SlotName, Vault } from '../src/license/vault.ts';
import type { VmId } from '../src/model/ids.ts';
import { ENDING_CODES, type Verdict } from '../src/model/license.ts';
import type { DoctorLine } from './doctor-line.ts';
import type { LicenseDefinition, LicenseService, LicenseView } from './licenses-service.ts';

export const DEFAULT_TENANT = 'default';

export type LicensesOptions = {
  readonly db: DatabaseSync;
  readonly vault: Vault;
  readonly clock: Clock;
  readonly log: Log;
  readonly policy: LeasePolicy & { readonly pollMs: number };
  readonly record: (record: AuditRecord) => Promise<unknown>;
  /** The tenant of a VM's group; null: its group says nothing, or it has none. */
  readonly groupTenantOf: (vm: VmId) => string | null;
  readonly onEnded: (vm: VmId, license: string, code: string) => void;
  /** For labs and tests: another server than the one that the definition names. */
  readonly makeServer?: typeof makeServer;
};

export type Licenses = {
  readonly book: LeaseBook;
  readonly service: LicenseService;
  /** For downloads: the token of the license that a file is under, to that license's origins. */
  readonly intercept: RequestInterceptor;
  readonly tenantOf: (vm: VmId) => string;
  /** On disk when it returns; null: what its group says. */
  readonly setTenant: (vm: VmId, tenant: string | null) => void;
  /** The VM is no more: its seats go back. */
  readonly forgetVm: (vm: VmId) => void;
  readonly doctorLines: () => Promise<readonly DoctorLine[]>;
  /** Begins to look after leases at intervals; VMs that are not in the set are no more. */
  readonly start: (vms: ReadonlySet<string>) => void;
  readonly close: () => Promise<void>;
};

type Entry = { readonly definition: LicenseDefinition; readonly server: LicenseServer };
type Said = { readonly said: LicenseView['said']; readonly trouble: string | null };

/** Opens the licenses over the host's database and its vault. A license whose server cannot be made is told and has none. */
export function openLicenses(options: LicensesOptions): Licenses {
  return new Room(options);
}

class Room implements Licenses {
  readonly book: LeaseBook;
  readonly intercept: RequestInterceptor;
  readonly service: LicenseService;
  readonly #options: LicensesOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #broken = new Map<string, LicenseDefinition>();
  readonly #said = new Map<string, Said>();
  readonly #tenants = new Map<string, string>();
  readonly #ending = new AbortController();
  /** What changes a license and its token happens one after another. */
  readonly #lanes = makeLanes();
  #loop: Promise<void> = Promise.resolve();
  #wake = (): void => {};

  constructor(options: LicensesOptions) {
    this.#options = options;
    const { db, clock, log, policy, record, onEnded } = options;
    // The casts hold: only this file writes these tables.
    const rows = db.prepare('SELECT definition FROM license ORDER BY id').all() as { definition: string }[];
    for (const { definition } of rows) this.#open(JSON.parse(definition) as LicenseDefinition);
    const tenants = db.prepare('SELECT vm, tenant FROM vm_tenant').all() as { vm: string; tenant: string }[];
    for (const { vm, tenant } of tenants) this.#tenants.set(vm, tenant);
    this.book = openLeaseBook({
      ...{ db, clock, log, policy, onEnded, tenantOf: this.tenantOf },
      serverOf: (license) => this.#entries.get(license)?.server ?? null,
      isFor: (license, vm) => this.#isFor(license, vm),
      record: (decision) => record({ kind: 'license', ...decision }),
      random: () => randomInt(1_000_001) / 1_000_000,
    });
    this.intercept = licenseInterceptor(options.vault, (license) => {
      const { definition } = this.#entries.get(license) ?? {};
      // Revoked on this host: it uses the token for nothing new, whatever is under way.
      return definition === undefined || this.book.endedBy(license) === REVOKED_HERE ? null : accessOf(definition);
    });
    this.service = this.#makeService();
  }

  // ---- Definitions --------------------------------------------------------------------------------------------------

  #open(definition: LicenseDefinition): void {
    try {
      this.#entries.set(definition.license, { definition, server: this.#serverFor(definition, 'current') });
      this.#broken.delete(definition.license);
    } catch (error) {
      // Its VMs stay as they are; the doctor and `license list` say why it has no server.
      this.#broken.set(definition.license, definition);
      this.#said.set(definition.license, { said: null, trouble: describeError(error) });
      this.#options.log.error(
        { license: definition.license, detail: describeError(error) },
        'a license cannot be used',
      );
    }
  }

  #serverFor(definition: LicenseDefinition, slot: SlotName): LicenseServer {
    const { vault, clock } = this.#options;
    return (this.#options.makeServer ?? makeServer)(definition, { vault, clock, slot });
  }

  #definition(license: string): LicenseDefinition {
    const found = this.#entries.get(license)?.definition ?? this.#broken.get(license);
    if (found !== undefined) return found;
    throw new LicenseError('not-found/license', `there is no license ${printable(license)}`, {
      next: 'list them with: pratique license list',
    });
  }

  #isFor(license: string, vm: VmId): boolean {
    const { tenants } = this.#definition(license);
    return tenants.length === 0 || tenants.includes(this.tenantOf(vm));
  }

  // ---- Tenants ------------------------------------------------------------------------------------------------------

  tenantOf = (vm: VmId): string => this.#tenants.get(vm) ?? this.#options.groupTenantOf(vm) ?? DEFAULT_TENANT;

  setTenant(vm: VmId, tenant: string | null): void {
    const { db } = this.#options;
    if (tenant === null) db.prepare('DELETE FROM vm_tenant WHERE vm = ?').run(vm);
    else db.prepare('INSERT OR REPLACE INTO vm_tenant (vm, tenant) VALUES (?, ?)').run(vm, tenant);
    if (tenant === null) this.#tenants.delete(vm);
    else this.#tenants.set(vm, tenant);
  }

  forgetVm(vm: VmId): void {
    this.book.releaseVm(vm);
    this.setTenant(vm, null);
    this.#wake();
  }

  // ---- Asked by operators -------------------------------------------------------------------------------------------

  #makeService(): LicenseService {
    const tell = async (actor: string, action: string, detail: string): Promise<void> =>
      void (await this.#options.record({ kind: 'operator', actor, action, detail: redactText(detail) }));
    return {
      addLicense: async (definition, { token, isUnchecked, actor }) => {
        await this.#lanes.run(definition.license, () => this.#add(definition, Buffer.from(token), isUnchecked));
        await tell(actor, 'license-added', `${definition.license} at ${definition.serverUrl}`);
        return this.#view(definition.license);
      },
      listLicenses: async () => this.#all().map((license) => this.#view(license)),
      showLicense: async (license) => this.#view(license),
      checkLicenses: async (license) => {
        const asked = license === null ? this.#all() : [this.#definition(license).license];
        await Promise.all(asked.map((each) => this.#validate(each)));
        this.#wake();
        return asked.map((each) => this.#view(each));
      },
      rotateLicense: async (license, { token, actor }) => {
        await this.#lanes.run(license, () => this.#rotate(license, Buffer.from(token)));
        await tell(actor, 'license-rotated', license);
        return this.#view(license);
      },
      revokeLicense: async (license, { reason, actor }) => {
        this.#definition(license);
        // On the record first: what it guards is taken away by it.
        await tell(actor, 'license-revoked', `${license}: ${reason}`);
        await this.book.endLicense(license, REVOKED_HERE);
        this.#wake();
        return this.#view(license);
      },
      removeLicense: async (license, { isForced, actor }) => {
        await this.#lanes.run(license, () => this.#remove(this.#definition(license).license, isForced));
        await tell(actor, 'license-removed', isForced ? `${license} by force` : license);
      },
      leases: async (filter) => this.#leases(filter),
      releaseSeats: async (vm, { actor }) => {
        const before = this.#leases({ vm });
        if (before.length === 0)
          throw new LicenseError('not-found/lease', `${printable(vm)} holds no seat`, {
            next: 'see who does: pratique license leases',
          });
        await tell(actor, 'seats-released', vm);
        // The cast holds: a lease is of a VM with this very name.
        this.book.releaseVm(vm as VmId);
        for (const lease of before)
          if (lease.state === 'held') this.#options.onEnded(lease.vm, lease.license, 'NO_LEASE');
        await this.book.tend(this.#ending.signal);
        return this.#leases({ vm });
      },
      licenseUse: async (query) => this.book.usage(query),
    };
  }

  async #add(definition: LicenseDefinition, token: Uint8Array, isUnchecked: boolean): Promise<void> {
    const { db, vault } = this.#options;
    const { license } = definition;
    if (this.#entries.has(license) || this.#broken.has(license)) {
      token.fill(0);
      throw new LicenseError('conflict/license', `there is a license ${license} already`, {
        next: `give it a new token: pratique license rotate ${license}`,
      });
    }
    checkDefinition(definition);
    await vault.put(license, token);
    try {
      const server = this.#serverFor(definition, 'current');
      if (!isUnchecked) this.#note(license, await this.#ask(definition, server));
      db.prepare('INSERT INTO license (id, definition) VALUES (?, ?)').run(license, JSON.stringify(definition));
      this.#entries.set(license, { definition, server });
    } catch (error) {
      await vault.remove(license);
      this.#said.delete(license);
      throw error;
    }
  }

  async #rotate(license: string, token: Uint8Array): Promise<void> {
    const { vault } = this.#options;
    const definition = this.#definition(license);
    const endedBefore = this.book.endedBy(license);
    await vault.stage(license, token);
    try {
      const trial = this.#serverFor(definition, 'next');
      const verdict = await this.#ask(definition, trial).finally(() => trial.close());
      await vault.promote(license);
      this.#note(license, verdict);
    } catch (error) {
      await vault.drop(license, 'next').catch(() => {}); // What it says of that is worth less than why the token is refused.
      throw error;
    }
    const ended = this.book.endedBy(license);
    // What an operator revoked while this token was being tried stays so.
    const isLifted = ended !== null && (ended !== REVOKED_HERE || endedBefore === REVOKED_HERE);
    if (isLifted) this.book.mendLicense(license);
    const entry = this.#entries.get(license);
    // Another object: what is under way with the old token is not taken for a word about the new one.
    if (entry !== undefined) this.#entries.set(license, { definition, server: { ...entry.server } });
    else this.#open(definition);
  }

  /** The server's word on a token that is to be used. Throws LicenseError `refused/license` where that is no. */
  async #ask({ license }: LicenseDefinition, server: LicenseServer): Promise<Verdict> {
    const verdict = await server.validate(this.#ending.signal);
    if (verdict.valid || SEAT_CODES.has(verdict.code)) return verdict;
    throw new LicenseError(
      'refused/license',
      `the server does not accept the token of ${license} (${printable(verdict.code)}): ${printable(verdict.detail, 300)}`,
      { next: 'look at the license with its vendor; nothing was changed' },
    );
  }

  async #remove(license: string, isForced: boolean): Promise<void> {
    const { db, vault } = this.#options;
    await this.book.endLicense(license, REVOKED_HERE);
    const left = await this.book.releaseLicense(license, this.#ending.signal);
    if (left > 0 && !isForced) {
      throw new LicenseError(
        'vendor-ill/license-server',
        `${counted(left, 'seat')} of ${license} could not be given back`,
        {
          next: 'try again when its server answers, or with --force: they come free when their leases end',
        },
      );
    }
    await vault.remove(license);
    this.book.forgetLicense(license);
    db.prepare('DELETE FROM license WHERE id = ?').run(license);
    await this.#entries.get(license)?.server.close();
    this.#entries.delete(license);
    this.#broken.delete(license);
    this.#said.delete(license);
  }

  // ---- Shown --------------------------------------------------------------------------------------------------------

  #all(): readonly string[] {
    return [...this.#entries.keys(), ...this.#broken.keys()].sort();
  }

  #leases(filter: { readonly vm?: string; readonly license?: string }) {
    return this.book.leases(filter).map(({ saidAtMs: _, dueAtMs: __, ...lease }) => lease);
  }

  #view(license: string): LicenseView {
    const { kind, serverUrl, origins, tenants } = this.#definition(license);
    const { said = null, trouble = null } = this.#said.get(license) ?? {};
    const leases = this.book.leases({ license });
    const held = leases.filter(({ state, standing }) => state === 'held' && standing !== 'over').length;
    const waiting = leases.filter(({ state }) => state === 'asking' || state === 'refused').length;
    const ended = this.book.endedBy(license);
    return {
      license,
      kind,
      serverUrl,
      origins,
      tenants,
      token: this.#token(license),
      said,
      trouble,
      ended,
      held,
      waiting,
    };
  }

  #token(license: string): LicenseView['token'] {
    try {
      const { lastFour, sealedBy, addedAtMs, warning } = this.#options.vault.describe(license);
      return { lastFour, sealedBy, addedAtMs, warning };
    } catch {
      return null; // The vault has told the log why; without a token the server says so, too.
    }
  }

  doctorLines = async (): Promise<readonly DoctorLine[]> => {
    if (this.#all().length === 0) return [];
    const { sealedBy, reason } = await this.#options.vault.sealing();
    const vaultLine: DoctorLine =
      sealedBy === 'systemd-creds'
        ? { check: 'license vault', state: 'ok', detail: 'tokens are sealed with systemd-creds', mend: null }
        : {
            check: 'license vault',
            state: 'warning',
            detail: `tokens are kept with a key file: who reads the disk can open them (${reason ?? 'no systemd-creds'})`,
            mend: 'use a host with systemd 250 or newer, then: pratique license rotate',
          };
    return [vaultLine, ...this.#all().map((license) => serverLine(this.#view(license)))];
  };

  // ---- Looked after -------------------------------------------------------------------------------------------------

  start(vms: ReadonlySet<string>): void {
    this.book.reconcile(vms);
    for (const vm of [...this.#tenants.keys()]) if (!vms.has(vm)) this.setTenant(vm as VmId, null); // The cast holds: only names of VMs are keys.
    this.#loop = this.#lookAfter();
  }

  async #lookAfter(): Promise<void> {
    const { clock, policy, log } = this.#options;
    const { signal } = this.#ending;
    let validatedMs = Number.NEGATIVE_INFINITY;
    let tending: Promise<void> | null = null;
    const tellFailure = (error: unknown): void => {
      if (!signal.aborted) log.error({ detail: describeError(error) }, 'looking after the leases failed');
    };
    while (!signal.aborted) {
      try {
        if (clock.monotonicMs() - validatedMs >= LICENSE_VALIDATE_MS) {
          validatedMs = clock.monotonicMs();
          await Promise.all([...this.#entries.keys()].map((license) => this.#validate(license)));
          this.book.forgetUse(trustedNowMs(clock) - LICENSE_USE_KEPT_MS);
        }
        await this.book.readRevocations(signal);
        this.#tellEnded();
      } catch (error) {
        tellFailure(error);
      }
      // Beside the reading: a server that takes its time for each seat holds up nobody's revocations.
      tending ??= this.book
        .tend(signal)
        .catch(tellFailure)
        .finally(() => {
          tending = null;
        });
      const woken = new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      await Promise.race([woken, clock.sleep(policy.pollMs, signal).catch(() => {})]);
    }
    await tending;
  }

  /** Once more: the daemon may have ended before it had taken away what a seat guards, or the hypervisor may have failed to. */
  #tellEnded(): void {
    for (const { vm, license, code, state } of this.book.leases())
      if (state === 'ended') this.#options.onEnded(vm, license, code);
  }

  /** What the server says of the license as a whole; an explicit end counts at once. */
  async #validate(license: string): Promise<void> {
    const entry = this.#entries.get(license);
    if (entry === undefined) return;
    try {
      const verdict = await entry.server.validate(this.#ending.signal);
      // It has another token since, or is gone.
      if (this.#entries.get(license) !== entry) return;
      this.#note(license, verdict);
      const ended = this.book.endedBy(license);
      if (!verdict.valid && ENDING_CODES.has(verdict.code) && ended === null)
        await this.book.endLicense(license, verdict.code);
      if (verdict.valid && ended !== null && ended !== REVOKED_HERE) this.book.mendLicense(license);
    } catch (error) {
      if (this.#ending.signal.aborted) return;
      const said = this.#said.get(license)?.said ?? null;
      this.#said.set(license, { said, trouble: printable(messageChain(error), 400) });
    }
  }

  #note(license: string, { valid, code, detail, seats, expiresAtMs }: Verdict): void {
    const atMs = Math.trunc(trustedNowMs(this.#options.clock));
    const said = { code, isValid: valid, detail: printable(detail, 300), seats, expiresAtMs, atMs };
    this.#said.set(license, { said, trouble: null });
  }

  async close(): Promise<void> {
    this.#ending.abort();
    this.#wake();
    await this.#loop;
    for (const { server } of this.#entries.values()) await server.close();
    this.#options.vault.close();
  }
}

/** The license itself is well; only a seat is missing, or is asked for later. */
const SEAT_CODES: ReadonlySet<string> = new Set([
  'NO_MACHINE',
  'NO_MACHINES',
  'TOO_MANY_MACHINES',
  'FINGERPRINT_SCOPE_REQUIRED',
  'HEARTBEAT_NOT_STARTED',
]);

/** The server of a license. Throws LicenseError `usage/license-…` for a definition that makes none. */
export function makeServer(
  definition: LicenseDefinition,
  { vault, clock, slot }: { readonly vault: Vault; readonly clock: Clock; readonly slot: SlotName },
): LicenseServer {
  const { license, serverUrl, ca, isLab = false } = definition;
  const transport = makeLicenseTransport({
    ...{ vault, license, slot, serverUrl, clock, isLoopbackHttpAllowed: isLab },
    ...(ca === undefined ? {} : { ca }),
  });
  const server = clientOf(definition, transport, clock);
  return {
    ...server,
    close: async () => {
      await server.close();
      await transport.close();
    },
  };
}

function clientOf(definition: LicenseDefinition, transport: LicenseTransport, clock: Clock): LicenseServer {
  const { license, kind, serverUrl, serverName, publicKey } = definition;
  if (kind === 'pratique') {
    const keys = readServerKeys(publicKey, `the license ${license}`);
    return makePratiqueServer({ transport, clock, keys, license: serverName ?? license });
  }
  if (serverName === undefined) {
    throw new LicenseError('usage/license-account', `${license}: whose account it is at Keygen is not said`, {
      next: "give the account's id with --server-name",
    });
  }
  return makeKeygenServer({ transport, clock, key: readKeygenKey(publicKey), account: serverName, serverUrl });
}

function accessOf({ origins, header, isLab = false }: LicenseDefinition) {
  const place: TokenPlace =
    header === undefined ? { kind: 'header', scheme: 'Bearer' } : { kind: 'header', name: header };
  return { origins, place, isLoopbackHttpAllowed: isLab };
}

/** Throws LicenseError `usage/license-…` before anything is kept. */
function checkDefinition(definition: LicenseDefinition): void {
  const access = accessOf(definition);
  checkTokenOrigins(access);
  checkTokenPlace(access.place);
  if (definition.publicKey.trim() === '')
    throw new PratiqueError('usage/license-key', `${definition.license}: the public key of its server is missing`, {
      next: 'give the file with --public-key',
    });
}

function serverLine({ license, said, trouble, ended, token }: LicenseView): DoctorLine {
  const check = `license ${license}`;
  const warn = (detail: string, mend: string): DoctorLine => ({ check, state: 'warning', detail, mend });
  if (token === null) return warn('its token cannot be read', `pratique license rotate ${license}`);
  if (ended !== null) return warn(`it has ended: ${printable(ended)}`, `pratique license check ${license}`);
  if (trouble !== null) return warn(`its server was not reached: ${trouble}`, `pratique license check ${license}`);
  if (said === null) return { check, state: 'ok', detail: 'its server was not asked yet', mend: null };
  const seats = said.seats === null ? '' : `, ${said.seats.used} of ${said.seats.total} seats taken`;
  if (!said.isValid && !SEAT_CODES.has(said.code))
    return warn(`its server says ${printable(said.code)}${seats}`, `pratique license check ${license}`);
  return { check, state: 'ok', detail: `its server answers (${printable(said.code)}${seats})`, mend: null };
}
