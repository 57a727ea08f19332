// What the surfaces may ask of the host's licenses. licenses.ts answers over the vault, the leases and the license servers.
import type { LeaseRow } from '../src/license/lease-rows.ts';
import type { UseRow } from '../src/license/lease-use.ts';
import { LicenseError } from '../src/license/license-error.ts';
import type { SealedBy } from '../src/license/seal.ts';
import type { VmId } from '../src/model/ids.ts';

/** What an operator says of a license. The token is not in here. */
export type LicenseDefinition = {
  readonly license: string;
  readonly kind: 'pratique' | 'keygen';
  readonly serverUrl: string;
  /** What the server calls it, where that is another name; for Keygen the account. */
  readonly serverName?: string;
  /** What signs the server's answers: PEM, or Keygen's hex. */
  readonly publicKey: string;
  /** PEM of the only authorities that are believed for the server. */
  readonly ca?: string;
  /** Where downloads carry the token to. */
  readonly origins: readonly string[];
  /** A header of the vendor's own for downloads; absent: `Authorization: Bearer`. */
  readonly header?: string;
  /** Tenants whose VMs it is for; none: all. */
  readonly tenants: readonly string[];
  /** Also to plain http on this machine. */
  readonly isLab?: boolean;
};

/** A token as it may be shown. */
export type TokenView = {
  readonly lastFour: string;
  readonly sealedBy: SealedBy;
  readonly addedAtMs: number;
  readonly warning: string | null;
};

export type LicenseView = {
  readonly license: string;
  readonly kind: LicenseDefinition['kind'];
  readonly serverUrl: string;
  readonly origins: readonly string[];
  readonly tenants: readonly string[];
  /** Null: it cannot be read. */
  readonly token: TokenView | null;
  /** What its server said of it last, and when; null: nothing since the daemon started. */
  readonly said: {
    readonly code: string;
    readonly isValid: boolean;
    readonly detail: string;
    readonly seats: { readonly used: number; readonly total: number } | null;
    readonly expiresAtMs: number | null;
    readonly atMs: number;
  } | null;
  /** Why its server could not be asked last time; null: it could. */
  readonly trouble: string | null;
  /** The explicit word that ended it; null: it goes on. */
  readonly ended: string | null;
  /** Seats that VMs of this host hold, and VMs that wait for one. */
  readonly held: number;
  readonly waiting: number;
};

export type LeaseView = {
  readonly license: string;
  readonly vm: VmId;
  readonly tenant: string;
  readonly state: LeaseRow['state'];
  /** How a held lease stands by the clock; null: none is held. */
  readonly standing: 'valid' | 'grace' | 'over' | null;
  readonly code: string;
  readonly seat: string | null;
  readonly grantedAtMs: number | null;
  readonly expiresAtMs: number | null;
  readonly usedAtMs: number;
};

export type LicenseUse = UseRow;

/** Every method throws a PratiqueError; unknown licenses are `not-found/license`. */
export type LicenseService = {
  readonly addLicense: (
    definition: LicenseDefinition,
    /** `isUnchecked`: without asking its server first. */
    given: { readonly token: string; readonly isUnchecked: boolean; readonly actor: string },
  ) => Promise<LicenseView>;
  readonly listLicenses: () => Promise<readonly LicenseView[]>;
  readonly showLicense: (license: string) => Promise<LicenseView>;
  /** Asks the server of one license, or of all, now. */
  readonly checkLicenses: (license: string | null) => Promise<readonly LicenseView[]>;
  /** The new token is tried at the server before the old one is gone. */
  readonly rotateLicense: (
    license: string,
    given: { readonly token: string; readonly actor: string },
  ) => Promise<LicenseView>;
  /** This host uses it no more, from now on: what it guards is taken off drives, its seats are given back. */
  readonly revokeLicense: (
    license: string,
    why: { readonly reason: string; readonly actor: string },
  ) => Promise<LicenseView>;
  /** Gives its seats back, then forgets it and its token. `isForced`: also where they cannot be given back. */
  readonly removeLicense: (
    license: string,
    how: { readonly isForced: boolean; readonly actor: string },
  ) => Promise<void>;
  readonly leases: (filter: { readonly vm?: string; readonly license?: string }) => Promise<readonly LeaseView[]>;
  /** Gives back what a VM holds; it takes seats again when it needs them. */
  readonly releaseSeats: (vm: string, how: { readonly actor: string }) => Promise<readonly LeaseView[]>;
  readonly licenseUse: (query: {
    readonly tenant?: string;
    readonly sinceMs: number;
  }) => Promise<readonly LicenseUse[]>;
};

/** Of a host that keeps none: in the simulator. */
export function noLicenses(): LicenseService {
  const refuse = async (): Promise<never> => {
    throw new LicenseError('usage/licenses', 'this host keeps no licenses');
  };
  return {
    ...{ addLicense: refuse, showLicense: refuse, rotateLicense: refuse, revokeLicense: refuse, removeLicense: refuse },
    releaseSeats: refuse,
    listLicenses: async () => [],
    checkLicenses: async () => [],
    leases: async () => [],
    licenseUse: async () => [],
  };
}
