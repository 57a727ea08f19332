// Where a token may go: to which origins, and to which place in a request.
import { LICENSE_ORIGINS_MAX } from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import { LicenseError } from './license-error.ts';

export type TokenPlace =
  | { readonly kind: 'header'; readonly scheme: 'Bearer' | 'License' }
  /** A header of the vendor's own, which holds the token alone. */
  | { readonly kind: 'header'; readonly name: string }
  /** A field of a JSON body, named from the outside in. */
  | { readonly kind: 'body'; readonly field: readonly string[] };

/** The origins a license's token may go to. */
export type TokenOrigins = {
  /** As `URL.origin` writes them: `https://updates.example.com`, `https://updates.example.com:8443`. */
  readonly origins: readonly string[];
  /** For labs: also over plain http, to an address of this machine that needs no name server: `http://127.0.0.1:8080`. */
  readonly isLoopbackHttpAllowed?: boolean;
};

/** Whether the token may go there. Plain http is refused here too, whatever the list says. */
export function mayCarryToken(origin: string, { origins, isLoopbackHttpAllowed = false }: TokenOrigins): boolean {
  if (!origins.includes(origin) || !URL.canParse(origin)) return false;
  const { protocol, hostname } = new URL(origin);
  if (protocol === 'https:') return true;
  return protocol === 'http:' && isLoopbackHttpAllowed && isLoopback(hostname);
}

/** An address, no name: what a name stands for is a name server's word. */
function isLoopback(hostname: string): boolean {
  return hostname === '[::1]' || /^127(\.\d{1,3}){3}$/.test(hostname);
}

/** Throws LicenseError `usage/license-origin` for origins that no token may go to, with the spelling that was meant where one is near. */
export function checkTokenOrigins(allowed: TokenOrigins): void {
  const { origins } = allowed;
  if (origins.length > LICENSE_ORIGINS_MAX) {
    throw new LicenseError('usage/license-origin', `a license has at most ${LICENSE_ORIGINS_MAX} origins`);
  }
  for (const origin of origins) {
    if (URL.canParse(origin) && new URL(origin).origin !== origin) {
      throw new LicenseError('usage/license-origin', `"${printable(origin)}" is more than an origin`, {
        next: `give ${printable(new URL(origin).origin)}`,
      });
    }
    if (mayCarryToken(origin, allowed)) continue;
    throw new LicenseError('usage/license-origin', `no token goes to "${printable(origin)}"`, {
      next: 'give scheme and host, and a port if it is not 443: https://updates.example.com',
    });
  }
}

const HEADER_NAME = /^[a-z][a-z0-9-]{0,63}$/i;
/** What HTTP gives a meaning of its own: a token there would change the request, or be kept by somebody in between. */
const TAKEN_HEADERS: ReadonlySet<string> = new Set([
  ...[
    'host',
    'connection',
    'content-length',
    'content-type',
    'transfer-encoding',
    'upgrade',
    'expect',
    'te',
    'trailer',
  ],
  ...['range', 'if-range', 'if-none-match', 'if-modified-since', 'accept-encoding', 'user-agent', 'referer', 'via'],
  ...['keep-alive', 'proxy-authorization', 'proxy-connection'],
]);

/** Throws LicenseError `usage/license-header` for a place that cannot hold a token. */
export function checkTokenPlace(place: TokenPlace): void {
  if (!('name' in place) || (HEADER_NAME.test(place.name) && !TAKEN_HEADERS.has(place.name.toLowerCase()))) return;
  throw new LicenseError('usage/license-header', `a header "${printable(place.name)}" cannot hold a token`, {
    next: 'name the header that the vendor asks for: X-Api-Key',
  });
}
