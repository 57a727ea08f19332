// The licenses of an in-memory Service: complete sample data, and what was asked of it.
import type { LeaseView, LicenseService, LicenseUse, LicenseView } from '../../proxy/licenses-service.ts';
import type { VmId } from '../../src/model/ids.ts';

export const SAMPLE_LICENSE: LicenseView = {
  license: 'acme',
  kind: 'pratique',
  serverUrl: 'https://licenses.example',
  origins: ['https://updates.example'],
  tenants: [],
  token: { lastFour: 'x7Qz', sealedBy: 'systemd-creds', addedAtMs: 1_700_000_000_000, warning: null },
  said: {
    code: 'VALID',
    isValid: true,
    detail: '',
    seats: { used: 2, total: 3 },
    expiresAtMs: 1_800_000_000_000,
    atMs: 1_700_000_000_000,
  },
  trouble: null,
  ended: null,
  held: 1,
  waiting: 1,
};

export const SAMPLE_LEASE: LeaseView = {
  license: 'acme',
  vm: 'web' as VmId, // The cast holds: letters are a VM's name.
  tenant: 'default',
  state: 'held',
  standing: 'valid',
  code: 'VALID',
  seat: 'seat-1',
  grantedAtMs: 1_700_000_000_000,
  expiresAtMs: 1_700_086_400_000,
  usedAtMs: 1_700_000_000_000,
};

export const SAMPLE_USE: LicenseUse = {
  tenant: 'default',
  license: 'acme',
  vm: 'web' as VmId, // The cast holds: letters are a VM's name.
  seatHours: 1.5,
  fetches: 2,
  bytes: 1_024,
};

/** Its answers; `enter` hears of every call and may throw. */
export function fakeLicenses(
  enter: (method: keyof LicenseService, ...args: readonly unknown[]) => void,
): LicenseService {
  return {
    addLicense: async (definition, given) => {
      enter('addLicense', definition, given);
      return { ...SAMPLE_LICENSE, license: definition.license };
    },
    listLicenses: async () => {
      enter('listLicenses');
      return [SAMPLE_LICENSE];
    },
    showLicense: async (license) => {
      enter('showLicense', license);
      return SAMPLE_LICENSE;
    },
    checkLicenses: async (license) => {
      enter('checkLicenses', license);
      return [SAMPLE_LICENSE];
    },
    rotateLicense: async (license, given) => {
      enter('rotateLicense', license, given);
      return SAMPLE_LICENSE;
    },
    revokeLicense: async (license, why) => {
      enter('revokeLicense', license, why);
      return { ...SAMPLE_LICENSE, ended: 'REVOKED_HERE' };
    },
    removeLicense: async (license, how) => enter('removeLicense', license, how),
    leases: async (filter) => {
      enter('leases', filter);
      return [SAMPLE_LEASE];
    },
    releaseSeats: async (vm, how) => {
      enter('releaseSeats', vm, how);
      return [];
    },
    licenseUse: async (query) => {
      enter('licenseUse', query);
      return [SAMPLE_USE];
    },
  };
}
