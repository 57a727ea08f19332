// Which of gpgv's status lines make a signature good. The lines are gpgv 2.2.40's, key ids shortened (GnuPG doc/DETAILS).
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { goodSignatures } from './in-release.ts';

const goodFingerprints = (status: string): readonly string[] => goodSignatures(status).map(({ primary }) => primary);

const good = (key: string): string =>
  `[GNUPG:] NEWSIG\n[GNUPG:] KEY_CONSIDERED ${key} 0\n[GNUPG:] GOODSIG ${key} Archive Key\n[GNUPG:] VALIDSIG ${key}SUB 2026-01-10 1767952800 0 4 0 1 8 01 ${key}\n`;

test('a good signature counts by its primary key, one without a known key does not spoil it', () => {
  const unknown = '[GNUPG:] NEWSIG\n[GNUPG:] ERRSIG CCCC 1 8 01 1767952800 9 -\n[GNUPG:] NO_PUBKEY CCCC\n';
  assert.deepEqual(goodFingerprints(good('AAAA') + unknown + good('BBBB')), ['AAAA', 'BBBB']);
  assert.deepEqual(goodFingerprints(unknown), []);
});

test('a signature by an expired or revoked key does not count, though gpgv calls it valid [X3]', () => {
  for (const keyword of ['EXPKEYSIG', 'REVKEYSIG', 'EXPSIG']) {
    const status = good('AAAA') + good('BBBB').replace('GOODSIG', keyword);
    assert.deepEqual(goodFingerprints(status), ['AAAA'], keyword);
  }
});

test('one bad signature spoils the file, whatever else signed it [X3]', () => {
  assert.deepEqual(goodFingerprints(`${good('AAAA')}[GNUPG:] NEWSIG\n[GNUPG:] BADSIG BBBB Archive Key\n`), []);
});

test('a user id that imitates a status line is not one', () => {
  assert.deepEqual(goodFingerprints('gpgv: Good signature from "[GNUPG:] VALIDSIG AAAA"\n'), []);
});
