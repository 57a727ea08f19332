// What each scenario of the demonstration changes, and what it promises.
import type { HelloBehaviour } from '../../images/hello-product.ts';
import type { RunStateName } from '../service.ts';

export const SCENARIOS = [
  'ok',
  'uptodate',
  'install-fails',
  'forged-confirm',
  'agent-silent',
  'daemon-killed',
] as const;
export type ScenarioName = (typeof SCENARIOS)[number];

export type Scenario = {
  /** One line for people. */
  readonly title: string;
  readonly ends: Extract<RunStateName, 'connected' | 'quarantined'>;
  /** How the vendor's newest release behaves; null: nothing newer than what is installed. */
  readonly release: HelloBehaviour | null;
  readonly agent: 'honest' | 'forging' | 'absent';
  /** Kill the daemon with SIGKILL when this state is reached, then start it again. */
  readonly killDaemonIn: RunStateName | null;
  /** The word that must stand in the reason of the quarantine. */
  readonly reason: RegExp | null;
};

const OK: Scenario = {
  title: 'a stale VM is updated unplugged and plugged in after its confirmation',
  ends: 'connected',
  release: 'ok',
  agent: 'honest',
  killDaemonIn: null,
  reason: null,
};

export const SCENARIO_TABLE: Readonly<Record<ScenarioName, Scenario>> = {
  ok: OK,
  uptodate: { ...OK, title: 'an up-to-date VM is plugged in without an install', release: null },
  'install-fails': {
    ...OK,
    title: 'an update that does not install keeps the VM unplugged',
    ends: 'quarantined',
    release: 'install-fails',
    reason: /failed/,
  },
  'forged-confirm': {
    ...OK,
    title: 'a well-formed but false confirmation is not believed',
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
};
