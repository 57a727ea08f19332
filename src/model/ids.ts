// The ids that name things across rooms, branded so that they cannot be mixed up.
import { Type } from 'typebox';

declare const vmBrand: unique symbol;
declare const runBrand: unique symbol;
/** A VM's name: letters, digits, dot, dash, underscore; at most 64; safe in paths, taps' comments and shell words. */
export type VmId = string & { readonly [vmBrand]: true };
/** One run of one VM from closed to open (or quarantined): 32 hex digits. */
export type RunId = string & { readonly [runBrand]: true };

export const VM_ID_PATTERN = '^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$';
export const HEX32_PATTERN = '^[0-9a-f]{32}$';
export const DIGEST_PATTERN = '^[0-9a-f]{64}$';

/** Whether the text may name a VM. */
export function isVmId(text: string): text is VmId {
  return new RegExp(VM_ID_PATTERN).test(text);
}

export const VmIdSchema = Type.Unsafe<VmId>(Type.String({ pattern: VM_ID_PATTERN }));
export const RunIdSchema = Type.Unsafe<RunId>(Type.String({ pattern: HEX32_PATTERN }));
/** The host's random nonce of one channel session: 32 hex digits. */
export const NonceSchema = Type.String({ pattern: HEX32_PATTERN });
/** The guest kernel's boot id: a UUID. */
export const BootIdSchema = Type.String({ pattern: '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' });
