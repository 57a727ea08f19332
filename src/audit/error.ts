// The audit room's error.
import { PratiqueError } from '../base/errors.ts';

export class AuditError extends PratiqueError {}
