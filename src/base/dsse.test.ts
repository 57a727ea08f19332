// Signed envelopes: the specification's own encoding, and what an envelope must be to be opened.
import assert from 'node:assert/strict';
import { createPrivateKey, createPublicKey, generateKeyPairSync, verify } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { makePrivatePem, openEnvelope, preAuthentication, sealEnvelope, signingKeyOf, verifyKeyOf } from './dsse.ts';

const newKey = () => signingKeyOf(createPrivateKey(makePrivatePem())) ?? assert.fail();
const TYPE = 'application/vnd.example+json';

test('the encoding that is signed is the one of the DSSE specification', () => {
  // protocol.md of DSSE v1.0.2.
  const encoded = preAuthentication('http://example.com/HelloWorld', Buffer.from('hello world')).toString();
  assert.equal(encoded, 'DSSEv1 29 http://example.com/HelloWorld 11 hello world');
  assert.equal(
    preAuthentication('ü', Buffer.from('ü')).toString(),
    'DSSEv1 2 ü 2 ü',
    'bytes are counted, not characters',
  );
});

test('whatever is sealed is opened by any of its keys and by no other, as its own type only', () => {
  const [one, two, other] = [newKey(), newKey(), newKey()];
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      const envelope = sealEnvelope(TYPE, bytes, [one, two]);
      for (const key of [one, two]) assert.deepEqual(openEnvelope(envelope, TYPE, [other, key]), Buffer.from(bytes));
      assert.equal(openEnvelope(envelope, TYPE, [other]), null);
      assert.equal(openEnvelope(envelope, TYPE, []), null);
      assert.equal(openEnvelope(envelope, 'application/vnd.other+json', [one]), null);
      assert.equal(openEnvelope({ ...envelope, payloadType: 'x' }, 'x', [one]), null);
      const unnamed = { ...envelope, signatures: envelope.signatures.map(({ sig }) => ({ keyid: '', sig })) };
      assert.deepEqual(openEnvelope(unnamed, TYPE, [two]), Buffer.from(bytes), 'a key id is a hint');
    }),
    { numRuns: 30 },
  );
});

test('a signature is verified by others too, and only in the one spelling of base64', () => {
  const key = newKey();
  const sig = key.sign('hello');
  assert.ok(verify(null, Buffer.from('hello'), createPublicKey(key.publicPem), Buffer.from(sig, 'base64')));
  assert.ok(key.isSigned('hello', sig));
  for (const other of [sig.replace(/=+$/, ''), `${sig}\n`, sig.replaceAll('+', '-'), '']) {
    assert.equal(other !== sig && key.isSigned('hello', other), false);
  }
  assert.ok(!key.isSigned('hallo', sig));
});

test('a key of another kind is none', () => {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  assert.equal(verifyKeyOf(publicKey), null);
  assert.equal(signingKeyOf(privateKey), null);
});
