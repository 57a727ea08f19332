// What `why` tells somebody to do can be done in the state the VM is in.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VmId } from '../model/ids.ts';
import type { QuarantineReason, Trouble } from '../model/quarantine.ts';
import { explainQuarantine } from './why.ts';

const VM = 'vm1' as VmId;
const TROUBLES: readonly Trouble[] = [
  { kind: 'agent-silent', waitedMs: 1, state: 'booting' },
  { kind: 'install-failed', item: 'a', code: 'failed', detail: '' },
  { kind: 'confirm-refused', code: 'left-out', detail: 'a' },
  { kind: 'confirm-refused', code: 'metadata-old', detail: 'a' },
  { kind: 'confirm-refused', code: 'wrong-run', detail: 'a' },
  { kind: 'drive-refused', code: 'manifest-digest', detail: '' },
  { kind: 'guest-misbehaved', code: 'too-many-lines', detail: 'a' },
  { kind: 'vendor-unavailable', vendor: 'v', detail: 'a' },
  { kind: 'plan-refused', code: 'policy', detail: 'a' },
  { kind: 'license-refused', license: 'l', code: 'NO_LICENSE' },
  { kind: 'host-failure', step: 'hold-vm', detail: 'a' },
  { kind: 'host-failure', step: 'begin-overlay', detail: 'a' },
  { kind: 'too-many-reboots', reboots: 9 },
  { kind: 'too-many-offers', offers: 9 },
  { kind: 'deadline', state: 'run', waitedMs: 1 },
  { kind: 'ungated-start', detail: 'a' },
];

test('a VM that is off is told to be started, never to be stopped or retried; one that runs never to be started first [X8]', () => {
  const rolledBack = TROUBLES.map(
    (cause): QuarantineReason => ({ kind: 'rolled-back', versions: [{ item: 'a', version: '1' }], cause }),
  );
  for (const reason of [...TROUBLES, ...rolledBack]) {
    const off = explainQuarantine(VM, reason, false).next;
    assert.match(off, /pratique vm start vm1/, JSON.stringify(reason));
    assert.doesNotMatch(off, /vm (stop|retry)/, JSON.stringify(reason));
    assert.match(explainQuarantine(VM, reason, true).next, /vm (retry|stop)/, JSON.stringify(reason));
  }
});
