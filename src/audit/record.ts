// What the audit chain records (X2), and what a record and a checkpoint look like to whoever reads them.
import type { Digest } from '../base/digest-text.ts';
import type { EvidenceFacts } from '../model/evidence.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { LicenseDecision } from '../model/license-check.ts';
import type { QuarantineReason } from '../model/quarantine.ts';

export type AuditRecord =
  | { readonly kind: 'gate-closed'; readonly vm: VmId; readonly reason: string }
  /** Written before the link is raised: who finds it without a raised link knows that a crash came between. */
  | { readonly kind: 'gate-opened'; readonly vm: VmId; readonly evidence: EvidenceFacts }
  /** Opened without evidence: by an operator, or for an infrastructure VM whose vendors cannot be reached. */
  | {
      readonly kind: 'override';
      readonly vm: VmId;
      readonly run: RunId | null;
      readonly actor: string;
      readonly reason: string;
    }
  | {
      readonly kind: 'offer';
      readonly vm: VmId;
      readonly run: RunId;
      readonly planDigest: Digest;
      readonly manifestDigest: Digest;
      /** An update of a VM that is plugged in: its guest has drive and network at once. */
      readonly isLive?: true;
    }
  /** A confirmation or a request that was not believed. */
  | {
      readonly kind: 'refusal';
      readonly vm: VmId;
      readonly run: RunId | null;
      readonly code: string;
      readonly detail: string;
    }
  /** What an agent reported first, or told last before the VM went off, is something else than the disk told. */
  | {
      readonly kind: 'disk-differs';
      readonly vm: VmId;
      readonly changed: number;
      readonly missing: number;
      readonly added: number;
      readonly detail: string;
    }
  | {
      readonly kind: 'quarantine';
      readonly vm: VmId;
      readonly run: RunId | null;
      readonly reason: QuarantineReason;
    }
  /** What was decided about a VM's seat of a license: granted, refused, renewed, revoked, run out, given back. */
  | ({ readonly kind: 'license' } & LicenseDecision)
  /** What an operator asked for: `vm-added`, `vendor-added`, `retry`, … */
  | {
      readonly kind: 'operator';
      readonly vm?: VmId;
      readonly actor: string;
      readonly action: string;
      readonly detail: string;
    };

/** A public key as a record names it. */
export type NamedKey = {
  /** SHA-256 of the key's DER (SPKI), 64 hex digits. */
  readonly keyid: string;
  /** That DER, base64. */
  readonly publicKey: string;
};

/** The chain's own record: from the next one on another key signs. Signed by both, so that neither alone can change keys. */
export type KeyRotated = {
  readonly kind: 'key-rotated';
  readonly actor: string;
  readonly from: NamedKey;
  readonly to: NamedKey;
};

export type ChainRecord = AuditRecord | KeyRotated;

export type AuditEntry = {
  /** From 1, without a gap. */
  readonly seq: number;
  readonly atMs: number;
  /** Hash of the record before, ZERO_HASH for the first. */
  readonly prev: string;
  readonly record: ChainRecord;
  /** SHA-256 of its line in an export; of a record of the first format: of its body (docs/audit.md). */
  readonly hash: string;
  /** Ed25519, base64; of a rotation the old key's. */
  readonly signature: string;
};

export const ZERO_HASH = '0'.repeat(64);

/** A signed statement that the chain had this many records and this head; kept elsewhere it proves that no tail was cut. */
export type Checkpoint = {
  /** Those of the first format name no key: they are from before any rotation. */
  readonly format: 'pratique.checkpoint/1' | 'pratique.checkpoint/2';
  readonly records: number;
  readonly head: string;
  readonly atMs: number;
  /** The key that was in force after the last of these records. */
  readonly keyid?: string;
  /** Ed25519 over the canonical JSON of the other fields, base64. */
  readonly signature: string;
};
