// Attaches to each licensed download the token of its own license, for the origins that this host's operator named for it.
import type { RequestInterceptor } from '../base/http-fetch.ts';
import { mayCarryToken, type TokenOrigins, type TokenPlace } from './token-place.ts';
import type { Vault } from './vault.ts';

export type DownloadAccess = TokenOrigins & { readonly place: TokenPlace };

/**
 * For `HttpFetchDeps.intercept`. What is under no license, or goes elsewhere, is left as it is: which license a release is under is its
 * vendor's word, where a token may go is the operator's. `originsOf`: null for a license that is not here.
 */
export function licenseInterceptor(
  vault: Pick<Vault, 'attach'>,
  originsOf: (license: string) => DownloadAccess | null,
): RequestInterceptor {
  return async ({ origin, license }, headers) => {
    const access = license === null ? null : originsOf(license);
    if (license === null || access === null || !mayCarryToken(origin, access)) return headers;
    const { place } = access;
    const attached = await vault.attach(license, access, { slot: 'current', origin, place, headers });
    return attached.headers;
  };
}
