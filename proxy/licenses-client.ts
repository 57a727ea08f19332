// The licenses of the daemon as seen from another process.
import type { LeaseView, LicenseService, LicenseUse, LicenseView } from './licenses-service.ts';

type Call = { readonly method: 'GET' | 'POST'; readonly path: string; readonly body?: unknown };
type Ask = <T>(call: Call) => Promise<T>;

/** Each method is a request; the daemon's serializer sends what the schema of its route declares. */
export function licenseCalls(ask: Ask): LicenseService {
  const at = (license: string, verb = '') => `/v1/licenses/${encodeURIComponent(license)}${verb}`;
  const post = async <T>(path: string, body: unknown) => await ask<T>({ method: 'POST', path, body });
  return {
    addLicense: async (definition, given) => await post('/v1/licenses', { ...definition, ...given }),
    listLicenses: async () => (await ask<Licenses>({ method: 'GET', path: '/v1/licenses' })).licenses,
    showLicense: async (license) => await ask({ method: 'GET', path: at(license) }),
    checkLicenses: async (license) => (await post<Licenses>('/v1/licenses/check', { license })).licenses,
    rotateLicense: async (license, given) => await post(at(license, '/rotate'), given),
    revokeLicense: async (license, why) => await post(at(license, '/revoke'), why),
    removeLicense: async (license, how) => await post(at(license, '/remove'), how),
    leases: async (filter) => {
      const query = new URLSearchParams({ ...filter }).toString();
      return (await ask<Leases>({ method: 'GET', path: `/v1/leases?${query}` })).leases;
    },
    releaseSeats: async (vm, how) =>
      (await post<Leases>(`/v1/vms/${encodeURIComponent(vm)}/release-seats`, how)).leases,
    licenseUse: async ({ tenant, sinceMs }) => {
      const query = new URLSearchParams({ since: String(sinceMs), ...(tenant === undefined ? {} : { tenant }) });
      return (await ask<{ readonly use: readonly LicenseUse[] }>({ method: 'GET', path: `/v1/license-use?${query}` }))
        .use;
    },
  };
}

type Licenses = { readonly licenses: readonly LicenseView[] };
type Leases = { readonly leases: readonly LeaseView[] };
