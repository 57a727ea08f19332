// The reference license server's error.
import { PratiqueError } from '../../src/base/errors.ts';

export class LicenseServerError extends PratiqueError {}
