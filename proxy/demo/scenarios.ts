// What each scenario of the demonstration changes, and what it promises.
import type { HelloBehaviour } from '../../images/hello-product.ts';
import type { Policy } from '../../src/model/policy.ts';
import type { RunStateName } from '../service.ts';

export const SCENARIOS = [
  'ok',
  'uptodate',
  'install-fails',
  'rolled-back',
  'forged-confirm',
  'agent-silent',
  'daemon-killed',
  'kernel',
  'licensed',
  'licensed-exhausted',
  'licensed-revoked',
  'licensed-away',
  'licensed-lapsed',
  'configured',
] as const;
export type ScenarioName = (typeof SCENARIOS)[number];

export const DEMO_GUESTS = ['tiny', 'debian'] as const;
export type DemoGuest = (typeof DEMO_GUESTS)[number];

/**
 * What becomes of the license before the VM starts: nothing; its one seat is another host's; its server revokes it once the update is
 * fetched; or its server goes away, and the VM starts within the grace, or after it.
 */
export type LicenseFate = 'valid' | 'exhausted' | 'revoked' | 'away' | 'lapsed';

export type Scenario = {
  /** One line for people. */
  readonly title: string;
  /** The guests on which it can be shown. */
  readonly guests: readonly DemoGuest[];
  readonly ends: Extract<RunStateName, 'connected' | 'quarantined'>;
  /** How the newest release of the product hello behaves; null: nothing newer than what is installed. */
  readonly release: HelloBehaviour | null;
  readonly agent: 'honest' | 'forging' | 'absent';
  /** Kill the daemon with SIGKILL when this state is reached, then start it again. */
  readonly killDaemonIn: RunStateName | null;
  /** The word that must stand in the reason of the quarantine. */
  readonly reason: RegExp | null;
  /** The VM's policy, where it is not the default. */
  readonly policy: Partial<Policy>;
  /** The guest starts by its own boot loader, and in the end another kernel runs than in the beginning. */
  readonly bootsNewKernel: boolean;
  /** The release is under a license; null: it is free. */
  readonly license: LicenseFate | null;
  /** The guest gets its address and a file by configuration alone, in the same run as its updates. */
  readonly isConfigured: boolean;
};

const OK: Scenario = {
  title: 'a stale VM is updated unplugged and plugged in after its confirmation',
  guests: ['tiny', 'debian'],
  ends: 'connected',
  release: 'ok',
  agent: 'honest',
  killDaemonIn: null,
  reason: null,
  policy: {},
  bootsNewKernel: false,
  isConfigured: false,
  license: null,
};

const LICENSED: Scenario = { ...OK, guests: ['tiny'], license: 'valid' };

export const SCENARIO_TABLE: Readonly<Record<ScenarioName, Scenario>> = {
  ok: OK,
  uptodate: { ...OK, title: 'an up-to-date VM is plugged in without an install', guests: ['tiny'], release: null },
  'install-fails': {
    ...OK,
    title: 'an update that does not install keeps the VM unplugged',
    guests: ['tiny'],
    ends: 'quarantined',
    release: 'install-fails',
    reason: /failed/,
  },
  'rolled-back': {
    ...OK,
    title: 'an update on a disk overlay that fails its health check is thrown away; the VM boots as before, unplugged',
    guests: ['tiny'],
    ends: 'quarantined',
    release: 'check-fails',
    reason: /rolled back/,
    policy: { overlay: true },
  },
  'forged-confirm': {
    ...OK,
    title: 'a well-formed but false confirmation is not believed',
    guests: ['tiny'],
    ends: 'quarantined',
    agent: 'forging',
    reason: /not believed/,
  },
  'agent-silent': {
    ...OK,
    title: 'a VM whose agent says nothing stays unplugged',
    ends: 'quarantined',
    agent: 'absent',
    reason: /said nothing/,
  },
  'daemon-killed': {
    ...OK,
    title: 'the daemon is killed in the middle of the install; the run goes on by itself',
    killDaemonIn: 'installing',
  },
  kernel: {
    ...OK,
    title: 'a Debian kernel and nginx are updated unplugged, the VM reboots into the new kernel and is then plugged in',
    guests: ['debian'],
    // A whole Debian's worth of updates would show nothing more, and take an emulated processor ten minutes.
    policy: { install: 'listed', packages: ['linux-image-*', 'nginx*'] },
    bootsNewKernel: true,
  },
  licensed: { ...LICENSED, title: 'an update under a license is installed with a seat of its own' },
  'licensed-exhausted': {
    ...LICENSED,
    title: 'without a free seat of its license an update is not fetched, and the VM stays unplugged',
    ends: 'quarantined',
    license: 'exhausted',
    reason: /demo-license.*all of its seats are taken/,
  },
  'licensed-revoked': {
    ...LICENSED,
    title: 'a license that is revoked after the update was fetched keeps it from the VM',
    ends: 'quarantined',
    license: 'revoked',
    reason: /demo-license.*its server has ended it/,
  },
  'licensed-away': {
    ...LICENSED,
    title: 'with its license server away a VM goes on by its lease, and by the grace after it',
    license: 'away',
  },
  'licensed-lapsed': {
    ...LICENSED,
    title: 'with its license server away for longer than the grace nothing new is installed',
    ends: 'quarantined',
    license: 'lapsed',
    reason: /demo-license.*its lease ran out/,
  },
  configured: {
    ...OK,
    title:
      'a stale VM gets software, an IP address and a file in one run, and answers there only once it is plugged in',
    isConfigured: true,
  },
};
