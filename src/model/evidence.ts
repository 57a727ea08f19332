// What opens the gate. The type is here so that every room can carry it; only confirm/judge.ts can make one.
import type { Digest } from '../base/digest-text.ts';
import type { RunId, VmId } from './ids.ts';
import type { LicenseFact } from './license-check.ts';
import type { LeftOut } from './release.ts';

export type EvidenceItem = {
  readonly item: string;
  readonly fromVersion: string | null;
  readonly version: string;
  readonly checkPassed: boolean | null;
};

/** A newer version that the VM was plugged in without, and why. */
export type EvidenceLeftOut = Pick<LeftOut, 'version' | 'kind' | 'why' | 'reason'> & { readonly item: string };

/** The facts behind one decision to plug in. Recorded in the audit chain as they are. */
export type EvidenceFacts = {
  readonly vm: VmId;
  readonly run: RunId;
  /** The host's random nonce of the session in which the guest confirmed. */
  readonly nonce: string;
  readonly boot: string;
  readonly planDigest: Digest;
  /** Every manifest that was offered in this run, in any of its boots. */
  readonly manifestDigests: readonly Digest[];
  /** Digest of the canonical JSON of the fresh inventory. */
  readonly inventoryDigest: Digest;
  readonly items: readonly EvidenceItem[];
  /** Configuration that the run applied, and what it took back; absent where there was none. */
  readonly config?: readonly Omit<EvidenceItem, 'checkPassed'>[];
  readonly configRemoved?: readonly Pick<EvidenceItem, 'item' | 'version'>[];
  /** Absent in records of the first version. */
  readonly leftOut?: readonly EvidenceLeftOut[];
  /** The checks of the policy, all of them passed; absent in records of the first versions. */
  readonly health?: readonly string[];
  /** The VM's disk bore the claim out: so many files of what was installed were read, and so many were not. Absent: not looked at. */
  readonly disk?: { readonly matching: number; readonly unread: number };
  /** The license checks behind what was installed; absent where nothing of it names a license. */
  readonly licenses?: readonly LicenseFact[];
  /** `fresh: false`: the vendor was away, and the policy goes by what was verified last, at `checkedAtMs`. */
  readonly vendors: readonly { readonly vendor: string; readonly checkedAtMs: number; readonly fresh: boolean }[];
  readonly judgedAtMs: number;
};

declare const evidenceBrand: unique symbol;
export type Evidence = EvidenceFacts & { readonly [evidenceBrand]: true };
