// The real command on a real Debian guest: security updates signed by Debian, from the archive that this machine's own apt uses.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runDemoCommand } from '../e2e/demo-run.ts';

test('a Debian guest gets the real security updates that are pending, and is plugged in after them [A9] [A10] [A11] [X1]', async (t) => {
  const { document, exitCode, said, leftovers } = await runDemoCommand(['--guest', 'debian']);
  assert.equal(exitCode, 0, said);
  assert.equal(document.state, 'connected');
  assert.equal(document.framesBeforePlug, 0);
  assert(document.framesControl > 0);
  // The cast holds for a gate that evidence opened; the next line looks.
  const opened = document.evidence as {
    readonly kind: string;
    readonly evidence: { readonly items: readonly { readonly item: string; readonly fromVersion: string | null }[] };
  };
  assert.equal(opened.kind, 'gate-opened');
  const updated = opened.evidence.items.filter(
    ({ item, fromVersion }) => item.startsWith('debian/') && fromVersion !== null,
  );
  assert(updated.length >= 1, 'at least one package was updated');
  assert.deepEqual(document.installed, document.latest);
  t.diagnostic(`updated: ${updated.map(({ item }) => item).join(', ')}`);
  assert.deepEqual(leftovers, []);
});
