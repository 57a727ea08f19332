// Audit chains for tests: a folder that is removed afterwards, records of several kinds, an export in a file, hand-made envelopes.
import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { type Audit, openAudit } from '../../src/audit/audit.ts';
import { envelopeLine, preAuthentication, signaturesText } from '../../src/audit/envelope.ts';
import { type PublicKey, readFolderKeys, readPublicKeys } from '../../src/audit/host-key.ts';
import type { AuditRecord, Checkpoint } from '../../src/audit/record.ts';
import { type AuditReport, type Link, verifyChain } from '../../src/audit/verify.ts';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import type { Digest } from '../../src/base/digest-text.ts';
import { silentLog } from '../../src/base/log.ts';
import type { RunId, VmId } from '../../src/model/ids.ts';

// The casts hold: a short name, and 32 and 64 hex digits.
export const VM = 'web-1' as VmId;
export const RUN = 'a'.repeat(32) as RunId;
export const PLAN = '1'.repeat(64) as Digest;
export const CLOSED: AuditRecord = { kind: 'gate-closed', vm: VM, reason: 'start' };
export const OFFER: AuditRecord = {
  kind: 'offer',
  vm: VM,
  run: RUN,
  planDigest: PLAN,
  manifestDigest: '2'.repeat(64) as Digest,
};
export const OPENED: AuditRecord = {
  kind: 'gate-opened',
  vm: VM,
  evidence: {
    vm: VM,
    run: RUN,
    nonce: 'b'.repeat(32),
    boot: '0b8c1d52-7c6e-4f0a-9a51-2f6f1f0d3c44',
    planDigest: PLAN,
    manifestDigests: ['2'.repeat(64) as Digest],
    inventoryDigest: '3'.repeat(64) as Digest,
    items: [],
    vendors: [],
    judgedAtMs: 7,
  },
};
export const ADDED: AuditRecord = { kind: 'operator', actor: 'ann', action: 'vendor-added', detail: 'own "ünï" 𝄞' };

/** A clock that stands still, so that equal chains have equal payloads. */
export const stillClock: Clock = { ...systemClock, nowMs: () => 1_700_000_000_000 };

export async function makeAuditFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-audit-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

export async function openTestAudit(t: TestContext, folder: string): Promise<Audit> {
  const audit = await openAudit({ folder, clock: stillClock, log: silentLog });
  t.after(() => audit.close());
  return audit;
}

/** What somebody elsewhere holds of a chain. */
export type Kept = {
  readonly lines: readonly string[];
  readonly keys: readonly PublicKey[];
  /** After the last record. */
  readonly checkpoint: Checkpoint;
};

/** A chain with records of several kinds; `rotateAfter` records the key is rotated, each time. */
export async function makeKeptChain(
  t: TestContext,
  { count, rotateAfter = [] }: { readonly count: number; readonly rotateAfter?: readonly number[] },
): Promise<Kept & { readonly folder: string; readonly audit: Audit; readonly checkpoints: readonly Checkpoint[] }> {
  const folder = await makeAuditFolder(t);
  const audit = await openTestAudit(t, folder);
  const kinds = [ADDED, CLOSED, OFFER, OPENED];
  const checkpoints: Checkpoint[] = [];
  for (let index = 0; index < count; index += 1) {
    await audit.append(kinds[index % kinds.length] ?? CLOSED);
    checkpoints.push(audit.checkpoint());
    if (rotateAfter.includes(index + 1)) {
      await audit.rotateKey({ actor: 'ann' });
      checkpoints.push(audit.checkpoint());
    }
  }
  return { folder, audit, checkpoints, ...(await keep(audit, folder)) };
}

export async function keep(audit: Audit, folder: string): Promise<Kept> {
  const { lines } = audit.lines({ afterSeq: 0, limit: 1_000 });
  return { lines, keys: await readFolderKeys(folder), checkpoint: audit.checkpoint() };
}

/** Verifies lines as those of a file. */
export async function verifyLines(
  lines: readonly string[],
  options: { readonly keys: readonly PublicKey[]; readonly checkpoint?: Checkpoint },
): Promise<AuditReport> {
  async function* links(): AsyncIterable<Link> {
    for (const line of lines) yield { kind: 'line', line };
  }
  return await verifyChain({ links: links(), ...options });
}

export async function writeLines(path: string, lines: readonly string[]): Promise<string> {
  await writeFile(path, lines.map((line) => `${line}\n`).join(''));
  return path;
}

/** What a line says. */
export function payloadOfLine(line: string): Record<string, unknown> {
  const { payload } = JSON.parse(line) as { payload: string };
  return JSON.parse(Buffer.from(payload, 'base64').toString()) as Record<string, unknown>;
}

/** A key that is nobody's, as an attacker has one, or as they have stolen it. */
export type TestKey = PublicKey & { readonly sign: (content: Uint8Array) => string };

export function makeTestKey(): TestKey {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519');
  const [known] = readPublicKeys(publicKey.export({ type: 'spki', format: 'pem' }).toString(), 'a test key');
  assert.ok(known);
  return { ...known, sign: (content) => sign(null, content, privateKey).toString('base64') };
}

/** A well-formed line that says anything, signed by anybody. */
export function forgeLine(said: unknown, signers: readonly Pick<TestKey, 'keyid' | 'sign'>[]): string {
  const payload = Buffer.from(JSON.stringify(said));
  const signed = preAuthentication(payload);
  return envelopeLine(payload, signaturesText(signers.map((key) => ({ keyid: key.keyid, sig: key.sign(signed) }))));
}
