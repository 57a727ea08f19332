// The real command on real Debian guests: updates signed by Debian, from the archive that this machine's own apt uses.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DemoDocument } from '../../proxy/demo/document.ts';
import { runDemoCommand } from '../e2e/demo-run.ts';

/** The updates of Debian packages that the evidence tells, by package. */
function updatedPackages(document: DemoDocument): readonly string[] {
  // The cast holds for a gate that evidence opened; the next line looks.
  const opened = document.evidence as {
    readonly kind: string;
    readonly evidence: { readonly items: readonly { readonly item: string }[] };
  };
  assert.equal(opened.kind, 'gate-opened');
  return opened.evidence.items.flatMap(({ item }) => /^debian\/([^:]+)/.exec(item)?.[1] ?? []);
}

function checkConnected({ document, leftovers }: Awaited<ReturnType<typeof runDemoCommand>>): void {
  assert.equal(document.state, 'connected');
  assert.equal(document.framesBeforePlug, 0);
  assert(document.framesControl > 0);
  assert.deepEqual(document.installed, document.latest);
  assert.deepEqual(document.served, document.latest, "what dpkg in the guest says, over the guest's network");
  assert.deepEqual(leftovers, []);
}

test('a Debian guest gets the real security updates that are pending, and is plugged in after them [A9] [A10] [A11] [X1]', async (t) => {
  const run = await runDemoCommand(['--guest', 'debian']);
  assert.equal(run.exitCode, 0, run.said);
  checkConnected(run);
  const { remarks, served } = run.document;
  const updated = updatedPackages(run.document);
  t.diagnostic(`updated: ${updated.join(', ')}`);
  for (const remark of remarks) t.diagnostic(remark);
  // On a day with few updates the signed product completes the run, and the document says so.
  if (remarks.length === 0) assert(updated.length >= 3, 'three packages were updated');
  else assert.equal(served?.hello, '1.1.0');
});

test('a Debian guest gets a new kernel and a new nginx, reboots into the one, and serves with the other only once it is admitted [A5] [A10] [A11] [X1]', async (t) => {
  const run = await runDemoCommand(['--guest', 'debian', '--scenario', 'kernel']);
  const { document } = run;
  for (const remark of document.remarks) t.diagnostic(remark);
  if (document.remarks.length > 0) {
    assert.equal(run.exitCode, 1, 'a run without a reboot does not pass for one');
    assert.equal(document.kernel?.after, document.kernel?.before);
    return;
  }
  assert.equal(run.exitCode, 0, run.said);
  checkConnected(run);
  const updated = updatedPackages(document);
  t.diagnostic(`kernel ${document.kernel?.before} -> ${document.kernel?.after}; updated: ${updated.join(', ')}`);
  assert.notEqual(document.kernel?.after, document.kernel?.before);
  assert(updated.includes(`linux-image-${document.kernel?.after}`), 'the running kernel is the one that was installed');
  assert(document.timelineMs.rebooting !== undefined);
  assert.equal(document.served?.nginx, document.latest.nginx, 'nginx started when its new version was installed');
  const { applicationStartedMs, gate } = document;
  assert(applicationStartedMs !== null && gate.confirmedAtMs !== null);
  // The guest's clock was set by QEMU to the second.
  assert(applicationStartedMs >= gate.confirmedAtMs - 2_000, `nginx started at ${applicationStartedMs} ms`);
});

test('a Debian guest gets its updates, an address and a file in one run, and answers there only once it is plugged in [A10 A13 A14]', async () => {
  const run = await runDemoCommand(['--guest', 'debian', '--scenario', 'configured']);
  assert.equal(run.exitCode, 0, run.said);
  checkConnected(run);
  const { configured } = run.document;
  assert(configured !== null && configured.probesBeforePlug > 0);
  assert.deepEqual([configured.answersBeforePlug, configured.answersAfterPlug > 0], [0, true]);
});
