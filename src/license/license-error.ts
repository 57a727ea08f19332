// What can go wrong with licenses. No message ever carries a token.
import { PratiqueError } from '../base/errors.ts';

/**
 * `usage/license-…`: wrong input; `not-found/license`; `conflict/license…`; `refused/license`: the server said no;
 * `vendor-ill/license-server`: it could not be reached, or its answer is not believed (never a denial); `host-fault/vault`: what is
 * sealed cannot be opened.
 */
export class LicenseError extends PratiqueError {}
