// The real command `demo --json` on real VMs: every promise of every scenario, from the outside.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { SCENARIO_TABLE, SCENARIOS, type ScenarioName } from '../../proxy/demo/scenarios.ts';
import { type DemoRun, runDemoCommand } from './demo-run.ts';

/** The evidence that opened the gate, as far as it is looked at here. */
type Opened = {
  readonly kind: string;
  readonly hash: string;
  readonly evidence: {
    readonly items: readonly Record<string, unknown>[];
    readonly manifestDigests: readonly string[];
    readonly licenses?: readonly Record<string, unknown>[];
  };
};

/** What holds of every run, however it ends. */
function checkAlways(run: DemoRun, scenario: ScenarioName): void {
  const { document } = run;
  assert.equal(document.guest, 'tiny');
  assert.equal(document.scenario, scenario);
  assert.equal(document.framesBeforePlug, 0, 'frames reached the peer before the plug');
  assert(document.framesControl > 0, 'the positive control sent nothing, so a count of zero says nothing');
  assert.deepEqual(run.leftovers, []);
  assert(run.processesSeen >= 3, `a daemon, the VM and its control were seen: ${run.processesSeen}`);
  assert.equal(document.timelineMs.booting !== undefined, true);
  assert(document.why.reason !== '' && document.why.next !== '');
}

function checkConnected({ exitCode, document, said }: DemoRun, versions: { readonly hello: string }): void {
  assert.equal(exitCode, 0, said);
  assert.equal(document.state, 'connected');
  assert.deepEqual(document.installed, versions);
  assert.deepEqual(document.latest, versions);
  assert.deepEqual(document.served, versions, 'the version that the VM serves over the network');
  const { linkUpAtMs, confirmedAtMs } = document.gate;
  assert(linkUpAtMs !== null && confirmedAtMs !== null && confirmedAtMs <= linkUpAtMs);
  // The cast holds for a gate that evidence opened; the line below looks.
  const opened = document.evidence as Opened;
  assert.equal(opened.kind, 'gate-opened');
  assert.match(opened.hash, /^[0-9a-f]{64}$/);
}

function checkQuarantined({ exitCode, document, said }: DemoRun, reason: RegExp): void {
  assert.equal(exitCode, 4, said);
  assert.equal(document.state, 'quarantined');
  assert.deepEqual(document.gate.linkUpAtMs, null);
  assert.equal(document.evidence, null);
  assert.equal(document.served, null);
  assert.match(document.why.reason, reason);
  assert.match(document.why.next, /pratique vm retry demo/);
  assert.deepEqual(document.latest, document.installed.hello === undefined ? {} : { hello: '1.1.0' });
}

/** Gated for want of a license: nothing was offered to it. */
function checkUnlicensed({ exitCode, document, said }: DemoRun, reason: RegExp): void {
  assert.equal(exitCode, 5, said);
  assert.equal(document.state, 'quarantined');
  assert.equal(document.gate.linkUpAtMs, null);
  assert.equal(document.evidence, null);
  assert.match(document.why.reason, reason);
  assert.match(document.why.next, /pratique vm retry demo/);
  const sincePowerOn = Object.entries(document.timelineMs).filter(([, ms]) => ms >= 0);
  assert.deepEqual(
    sincePowerOn.map(([state]) => state),
    ['booting', 'reporting', 'planning', 'quarantined'],
  );
  assert.deepEqual(document.installed, { hello: '1.0.0' });
}

const ORDER = ['booting', 'reporting', 'planning', 'offering', 'installing', 'judging', 'opening', 'connected'];

/** Scenarios that the quick guest can show; test/full has the others. */
type TinyScenario = Exclude<ScenarioName, 'kernel'>;
const isTiny = (scenario: ScenarioName): scenario is TinyScenario => SCENARIO_TABLE[scenario].guests.includes('tiny');

const PROMISES: Readonly<Record<TinyScenario, { readonly promise: string; readonly check: (run: DemoRun) => void }>> = {
  ok: {
    promise: 'a stale VM is updated unplugged, and plugged in once its confirmation is believed [A2 A8 A9 A10 A11]',
    check: (run) => {
      checkConnected(run, { hello: '1.1.0' });
      const { timelineMs } = run.document;
      assert.deepEqual(Object.keys(timelineMs), ORDER);
      assert.deepEqual(
        Object.values(timelineMs).toSorted((a, b) => a - b),
        Object.values(timelineMs),
      );
      const { items, manifestDigests } = (run.document.evidence as Opened).evidence; // Looked at by checkConnected.
      assert.deepEqual(items, [{ item: 'bundle/hello', fromVersion: '1.0.0', version: '1.1.0', checkPassed: true }]);
      assert.equal(manifestDigests.length, 1);
    },
  },
  uptodate: {
    promise: 'a VM that is up to date is plugged in without an install [A7 A11]',
    check: (run) => {
      checkConnected(run, { hello: '1.0.0' });
      const { timelineMs } = run.document;
      assert.deepEqual(
        Object.keys(timelineMs),
        ORDER.filter((state) => state !== 'offering' && state !== 'installing'),
      );
      assert.deepEqual((run.document.evidence as Opened).evidence.items, []); // Looked at by checkConnected.
    },
  },
  'install-fails': {
    promise: 'a VM whose update does not install stays unplugged and says why [A10 A11 X8]',
    check: (run) => {
      checkQuarantined(run, /Installing bundle\/hello failed.*no room for the new page/);
      assert.deepEqual(run.document.installed, { hello: '1.0.0' });
    },
  },
  'rolled-back': {
    promise: 'a VM whose update fails its check on a disk overlay is as before, stays unplugged and says why [X5 X8]',
    check: (run) => {
      checkQuarantined(run, /rolled back.*as before.*does not answer with the new version.*bundle\/hello 1\.1\.0/);
      assert.deepEqual(run.document.installed, { hello: '1.0.0' });
      assert.notEqual(run.document.timelineMs['rolling-back'], undefined);
    },
  },
  'forged-confirm': {
    promise: 'a confirmation that is well-formed but untrue is not believed [A10 A11 X8]',
    check: (run) => {
      checkQuarantined(run, /confirmation was not believed/);
      assert.notEqual(run.document.timelineMs.judging, undefined, 'it came as far as the confirmation');
    },
  },
  'agent-silent': {
    promise: 'a VM whose agent says nothing stays unplugged [A11 X8]',
    check: (run) => {
      checkQuarantined(run, /said nothing for 15 s while booting/);
      assert.deepEqual(Object.keys(run.document.timelineMs), ['booting', 'quarantined']);
    },
  },
  configured: {
    promise:
      'software, an address and a file come in one run, and the address answers only after the plug [A10 A13 A14]',
    check: (run) => {
      checkConnected(run, { hello: '1.1.0' });
      const { configured } = run.document;
      assert(configured !== null && configured.probesBeforePlug > 0, 'somebody asked before the plug');
      assert.equal(configured.answersBeforePlug, 0);
      assert(configured.answersAfterPlug > 0, 'positive control: the same question is answered after the plug');
      const names = configured.items.map((item) => item.replace(/ .*/, ''));
      assert.deepEqual(names.toSorted(), ['config/greeting', 'config/lan', 'config/name']);
    },
  },
  'daemon-killed': {
    promise: 'a daemon that is killed in the middle of an install goes on by itself, and nothing leaks [A11 X4]',
    check: (run) => {
      assert.equal(run.document.daemonKilled, true);
      checkConnected(run, { hello: '1.1.0' });
    },
  },
  licensed: {
    promise:
      'an update under a license is installed with a seat of the VM, and the record of the opening names it [A15 X2]',
    check: (run) => {
      checkConnected(run, { hello: '1.1.0' });
      const [license] = (run.document.evidence as Opened).evidence.licenses ?? []; // Looked at by checkConnected.
      assert.equal(license?.license, 'demo-license');
      assert.equal(license?.code, 'VALID');
      assert.match(String(license?.lease), /^[0-9a-f]{32}$/);
      assert.equal(license?.isInGrace, false);
    },
  },
  'licensed-exhausted': {
    promise: 'without a free seat nothing is fetched, and the VM stays unplugged and says why [A15 X8]',
    check: (run) => checkUnlicensed(run, /all of its seats are taken \(TOO_MANY_MACHINES\)/),
  },
  'licensed-revoked': {
    promise:
      'a license that is revoked between staging and install keeps what is on the host already from the VM [A15 X8]',
    check: (run) => {
      checkUnlicensed(run, /its server has ended it \(REVOKED\)/);
      const { staged = 0 } = run.document.timelineMs;
      assert(staged < 0, 'what it was to get had been fetched before its power-on');
    },
  },
  'licensed-away': {
    promise: 'with the license server away a VM goes on in the grace after its lease, and the record says so [A15 X2]',
    check: (run) => {
      checkConnected(run, { hello: '1.1.0' });
      const [license] = (run.document.evidence as Opened).evidence.licenses ?? []; // Looked at by checkConnected.
      assert.equal(license?.isInGrace, true);
      assert.equal(license?.code, 'SERVER_AWAY');
    },
  },
  'licensed-lapsed': {
    promise: 'with the license server away for longer than the grace nothing new is installed [A15 X8]',
    check: (run) => checkUnlicensed(run, /its lease ran out.*\(LEASE_EXPIRED\)/),
  },
};

/** Scenarios that differ from another one in what the license server does only: its own tests have that, too. */
const IN_FULL: ReadonlySet<TinyScenario> = new Set(['licensed-exhausted', 'licensed-away', 'licensed-lapsed']);
const isFull = process.env.PRATIQUE_TEST_FULL === '1';

describe('demo', () => {
  for (const scenario of SCENARIOS.filter(isTiny).filter((each) => isFull || !IN_FULL.has(each))) {
    const { promise, check } = PROMISES[scenario];
    test(`${scenario}: ${promise} [X1]`, async () => {
      const run = await runDemoCommand(['--scenario', scenario]);
      check(run);
      checkAlways(run, scenario);
    });
  }
});
