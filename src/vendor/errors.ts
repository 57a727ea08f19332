// What can go wrong with a vendor: its metadata, its artifacts, its description of a release.
import { PratiqueError } from '../base/errors.ts';

/** Codes: `vendor-ill/…` when the vendor's data are at fault, `usage/…` for the operator's input, `host-fault/…` for our disk. */
export class VendorError extends PratiqueError {}
