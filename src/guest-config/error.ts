// What can go wrong with the configuration of guests. No message ever carries a secret or the content of a file.
import { PratiqueError } from '../base/errors.ts';

/**
 * `usage/guest-config`: a file, a document or a value is not what it must be; `usage/guest-secret`: a secret is missing or open to
 * others; `refused/guest-config-…`: a document of the server is not believed; `vendor-ill/guest-config-server`: the server could
 * not be asked; `host-fault/guest-config`: what the host keeps itself is damaged.
 */
export class GuestConfigError extends PratiqueError {}
