// The protocol page says what the code does: generated, every example valid, the transcript a real conversation.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import type { TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { ConfigDriveFileSchema } from '../model/guest-config.ts';
import { ManifestSchema } from '../model/manifest.ts';
import { AGENT_EXAMPLES, CONFIG_EXAMPLE, HOST_EXAMPLES, MANIFEST_EXAMPLE } from './examples.ts';
import { receiveLine, type Session } from './inbound.ts';
import { AGENT_MESSAGES, HOST_MESSAGES, REFUSE_CODES } from './messages.ts';
import { renderProtocolPage } from './protocol-page.ts';
import { TRANSCRIPT } from './transcript.ts';

function firstError(schema: TSchema, value: unknown): unknown {
  return [...Compile(schema).Errors(value)][0];
}

for (const [side, schemas, examples] of [
  ['agent', AGENT_MESSAGES, AGENT_EXAMPLES],
  ['host', HOST_MESSAGES, HOST_EXAMPLES],
] as const) {
  for (const [type, schema] of Object.entries(schemas)) {
    test(`the example of the ${side}'s ${type} is valid [A10]`, () => {
      const example = (examples as Readonly<Record<string, unknown>>)[type];
      assert.equal(firstError(schema, example), undefined);
      assert.notEqual(firstError(schema, { ...(example as object), extra: 1 }), undefined);
    });
  }
}

test('the examples of the manifest and of configuration are valid [A9 A14]', () => {
  assert.equal(firstError(ManifestSchema, MANIFEST_EXAMPLE), undefined);
  assert.equal(firstError(ConfigDriveFileSchema, CONFIG_EXAMPLE), undefined);
});

test("the page's transcript is a conversation that the host's end accepts line by line [A10]", () => {
  let session: Session | null = null;
  let hostSeq = 0;
  let accepted = 0;
  for (const line of TRANSCRIPT) {
    if (line.from === 'note') continue;
    if (line.from === 'host') {
      assert.equal(firstError(HOST_MESSAGES[line.message.type], line.message), undefined);
      assert.equal(line.message.seq, hostSeq);
      hostSeq += 1;
      continue;
    }
    const received = receiveLine(session, { kind: 'line', text: JSON.stringify(line.message) });
    assert.notEqual(received.kind, 'refused', JSON.stringify(received));
    accepted += 1;
    if (received.kind === 'hello') {
      const { boot, agentVersion, protocol } = received;
      const { nonce } = HOST_EXAMPLES.open;
      session = { nonce, boot, agentVersion, protocol, receivedSeq: 0, transfer: null, transfersFinished: 0 };
    }
    if (received.kind === 'message') session = received.session;
  }
  assert.equal(accepted, 7);
});

test('the page in docs is the one that the code renders: run `npm run docs` after a change [A10]', async () => {
  const page = await readFile(new URL('../../docs/agent-protocol.md', import.meta.url), 'utf8');
  assert.equal(page, renderProtocolPage());
});

test('the page speaks of every message, code and field [A10]', () => {
  const page = renderProtocolPage();
  for (const type of [...Object.keys(AGENT_MESSAGES), ...Object.keys(HOST_MESSAGES)])
    assert.ok(page.includes(`### \`${type}\``), type);
  for (const code of Object.keys(REFUSE_CODES)) assert.ok(page.includes(`| \`${code}\` |`), code);
  for (const field of ['inventory.products[].state', 'results[].checkPassed', 'items[].install(bundle).prefix']) {
    assert.ok(page.includes(`\`${field}\``), field);
  }
});
