// Records as bytes: DSSE envelopes around in-toto statements, in one spelling only.
import assert from 'node:assert/strict';
import { createPublicKey, verify } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { ADDED, CLOSED, makeKeptChain, OFFER, OPENED, payloadOfLine } from '../../test/fakes/audit-chain.ts';
import { digestOf } from '../base/digest.ts';
import { canonicalJson } from '../base/digest-text.ts';
import {
  draftOf,
  envelopeLine,
  payloadOf,
  preAuthentication,
  readEnvelope,
  readStatement,
  signaturesText,
} from './envelope.ts';
import type { AuditRecord } from './record.ts';

const PLACE = { seq: 3, prev: '0'.repeat(64), atMs: 7, host: 'f'.repeat(64) };
const SIGNATURES = signaturesText([{ keyid: 'a'.repeat(64), sig: Buffer.alloc(64).toString('base64') }]);

test('the encoding that is signed is the one of the DSSE specification [X2]', () => {
  // protocol.md of DSSE v1.0.2 gives PAE("http://example.com/HelloWorld", "hello world"); only the type is ours here.
  const encoded = preAuthentication(Buffer.from('hello world')).toString();
  assert.equal(encoded, 'DSSEv1 28 application/vnd.in-toto+json 11 hello world');
  assert.ok(preAuthentication(Buffer.from('ü')).toString().endsWith(' 2 ü'), 'bytes are counted, not characters');
});

test('a record is a statement about its VM, run, plan and manifest, signed over payload type and payload [X2]', async (t) => {
  const { lines, keys } = await makeKeptChain(t, { count: 4 });
  const key = keys[0] ?? assert.fail();
  const offer = lines[2] ?? assert.fail();
  assert.deepEqual(payloadOfLine(offer), {
    _type: 'https://in-toto.io/Statement/v1',
    subject: [
      { name: 'vm:web-1', digest: { sha256: digestOf('vm:web-1') } },
      { name: `run:${'a'.repeat(32)}`, digest: { sha256: digestOf(`run:${'a'.repeat(32)}`) } },
      { name: 'plan', digest: { sha256: '1'.repeat(64) } },
      { name: 'manifest', digest: { sha256: '2'.repeat(64) } },
    ],
    predicateType: 'urn:pratique:audit:2',
    predicate: {
      atMs: 1_700_000_000_000,
      details: { vm: 'web-1', run: 'a'.repeat(32), planDigest: '1'.repeat(64), manifestDigest: '2'.repeat(64) },
      host: key.keyid,
      kind: 'offer',
      prev: digestOf(lines[1] ?? ''),
      seq: 3,
    },
  });
  const { payload, payloadType, signatures } = JSON.parse(offer) as {
    payload: string;
    payloadType: string;
    signatures: { keyid: string; sig: string }[];
  };
  const body = Buffer.from(payload, 'base64');
  const signed = Buffer.concat([Buffer.from(`DSSEv1 28 ${payloadType} ${body.length} `), body]);
  const sig = Buffer.from(signatures[0]?.sig ?? '', 'base64');
  assert.ok(verify(null, signed, createPublicKey(key.publicPem), sig));
  assert.equal(key.keyid, digestOf(createPublicKey(key.publicPem).export({ type: 'spki', format: 'der' })));
  const subjects = lines.map((line) => (payloadOfLine(line).subject as { name: string }[]).map(({ name }) => name));
  assert.deepEqual(subjects[0], ['host']);
  assert.deepEqual(subjects[1], ['vm:web-1']);
  assert.deepEqual(subjects[3], ['vm:web-1', `run:${'a'.repeat(32)}`, 'plan', 'manifest']);
});

test('whatever a record says, it is read back as it was, and its payload is canonical JSON [X2]', () => {
  const text = fc.string({ unit: 'binary', maxLength: 40 });
  const records: readonly AuditRecord[] = [ADDED, CLOSED, OFFER, OPENED];
  fc.assert(
    fc.property(fc.constantFrom(...records), text, text, (record, extra, field) => {
      // The cast holds for the writer: it takes a record's fields as they are.
      const said = { ...record, [`x${field}`]: extra, reason: extra } as AuditRecord;
      const payload = payloadOf(draftOf(said), PLACE);
      assert.equal(canonicalJson(JSON.parse(payload)), payload);
      const line = envelopeLine(Buffer.from(payload), SIGNATURES);
      assert.equal(canonicalJson(JSON.parse(line)), line);
      const read = readStatement(readEnvelope(line, 'it'), 'it');
      assert.deepEqual(read, { ...PLACE, record: { ...said } });
    }),
  );
});

test('a line in another spelling, of another type or with anything more is no record [X2]', () => {
  const payload = payloadOf(draftOf(CLOSED), PLACE);
  const line = envelopeLine(Buffer.from(payload), SIGNATURES);
  assert.equal(readEnvelope(line, 'it').hash, digestOf(line));
  const base64 = Buffer.from(payload).toString('base64');
  const others = [
    ` ${line}`,
    line.replace('{', '{ '),
    line.replace(base64, base64.replaceAll('=', '')),
    line.replace(base64, `${base64}\\u003d`),
    line.replace('}', ',"more":1}'),
    line.replace('"payload":', '"payload":"","payload":'),
    line.replace('in-toto', 'in-tota'),
    line.replace(/"signatures":\[.*\]/, '"signatures":[]'),
    line.replace('"sig":', '"sig":1,"sig":'),
    '{}',
    '[]',
    'null',
    '7',
    '',
  ];
  for (const other of others) {
    if (other === line) continue;
    assert.throws(() => readEnvelope(other, 'it'), { code: 'host-fault/audit-damaged' }, other);
  }
});
