// Services that packages want restarted: nobody starts them while packages are installed, the old ones end before the machine is
// plugged in, and the new ones start once it is. A service that waits for the network would otherwise wait for us, and we for it.
//
//   package script ─► policy-rc.d (ours: "not now", noted) ─► settle: stop what runs ─► admitted ─► start
import {
  AGENT_HEALTH_TRY_MS,
  AGENT_SERVICE_NOTES_BYTES_MAX,
  AGENT_SERVICES_TIMEOUT_MS,
} from '../../src/base/limits.ts';
import { readText } from '../durable.ts';
import { findProgram } from '../inventory.ts';
import { type Paths, runFolder } from '../paths.ts';
import type { Platform, RunResult } from '../platform/platform.ts';
import { isInitStale } from '../stale-processes.ts';

const wantedPath = (paths: Paths) => `${paths.runtime}/wanted-services`;
const deferredPath = (paths: Paths) => `${paths.runtime}/deferred-services`;
const keptPolicy = (paths: Paths) => `${paths.policy}.pratique-kept`;

/** invoke-rc.d(8): 101 means "do not"; what was wanted is noted in a file that only this boot has. */
const policyText = (paths: Paths) => `#!/bin/sh
# Written by pratique-agent for the time of an installation.
while :; do case $1 in --list) exit 101 ;; --*) shift ;; *) break ;; esac; done
echo "$1 $2" >>${wantedPath(paths)}
exit 101
`;

/** Our own unit: the agent starts itself anew, in the middle of a run, when its executable was replaced. */
export const OWN_SERVICE = 'pratique-agent';
const NAME = /^[A-Za-z0-9][A-Za-z0-9@:._\\-]*$/;

/** No service is started or stopped by a package's own scripts from here on. */
export function forbidStarts(platform: Platform, paths: Paths): void {
  const { files } = platform;
  restorePolicy(platform, paths);
  if (files.stat(paths.policy) !== null) files.rename(paths.policy, keptPolicy(paths));
  const file = files.create(paths.policy, 0o755);
  try {
    file.write(platform.encode(policyText(paths)));
    file.setMode(0o755);
  } finally {
    file.close();
  }
}

/** Puts the guest's own policy back, also after an installation that was broken off. Called at every start. */
export function restorePolicy(platform: Platform, paths: Paths): void {
  const { files } = platform;
  if (files.stat(keptPolicy(paths)) !== null) files.rename(keptPolicy(paths), paths.policy);
  else if (isOurPolicy(platform, paths)) files.remove(paths.policy);
}

/** Ours in full or, after a power cut, the beginning of it. */
function isOurPolicy(platform: Platform, paths: Paths): boolean {
  const ours = policyText(paths);
  const found = platform.files.stat(paths.policy);
  if (found === null || found.kind !== 'file' || found.sizeBytes > ours.length) return false;
  const text = readText(platform, paths.policy, ours.length);
  return text !== null && ours.startsWith(text);
}

/**
 * Ends the services that run what was just replaced, and notes which to start at the admission. `further`: units that run it
 * although no package asked for their restart. A machine that is admitted already gets them back at once.
 */
export async function settleServices(
  platform: Platform,
  paths: Paths,
  options: { readonly further: readonly string[]; readonly isAdmitted: boolean },
): Promise<void> {
  const wanted = takeWanted(platform, paths);
  for (const unit of options.further) if (!wanted.has(unit)) wanted.set(unit, new Set(['restart']));
  if (wanted.size === 0) return;
  const plan = isSystemd(platform, paths)
    ? await planUnits(platform, paths, wanted)
    : await planScripts(platform, paths, wanted);
  noteDeferred(platform, paths, plan.start);
  if (plan.restart.length > 0) await systemctl(platform, paths, ['--no-block', 'restart', ...plan.restart]);
  await callServices(platform, paths, 'stop', plan.stop);
  if (options.isAdmitted) await startDeferred(platform, paths);
}

/** Starts what was held back until the admission; nobody waits for it. */
export async function startDeferred(platform: Platform, paths: Paths): Promise<void> {
  const names = (readText(platform, deferredPath(paths), AGENT_SERVICE_NOTES_BYTES_MAX) ?? '').split('\n');
  const known = [...new Set(names.filter((name) => NAME.test(name)))];
  if (known.length === 0) return;
  platform.files.remove(deferredPath(paths));
  platform.log(`starting what was held back: ${known.join(' ')}`);
  await callServices(platform, paths, 'start', known);
}

/** Whether a service is up; null if it is, otherwise what it is. One that was held back is started first: it is asked for by name. */
export async function findServiceFault(platform: Platform, paths: Paths, name: string): Promise<string | null> {
  if (takeDeferred(platform, paths, name)) await callServices(platform, paths, 'start', [name]);
  if (!isSystemd(platform, paths)) {
    const script = `${paths.etc}/init.d/${name.replace(/\.service$/, '')}`;
    if (platform.files.stat(script) === null) return `there is no ${script}`;
    const { exitCode, output } = await call(platform, paths, [script, 'status'], AGENT_HEALTH_TRY_MS);
    return exitCode === 0 ? null : `${script} status: ${output.trim() || `exit ${exitCode}`}`;
  }
  const words = ['show', '-pLoadState', '-pActiveState', '-pSubState', name];
  const shown = (await systemctl(platform, paths, words, AGENT_HEALTH_TRY_MS)).output;
  const shownAs = (property: string) => new RegExp(`^${property}=(.*)$`, 'm').exec(shown)?.[1] ?? 'unknown';
  if (shownAs('LoadState') !== 'loaded') return `systemd does not know it (${shownAs('LoadState')})`;
  const state = shownAs('ActiveState');
  return state === 'active' ? null : `it is ${state} (${shownAs('SubState')})`;
}

const isSameService = (one: string, other: string) =>
  one === other || `${one}.service` === other || one === `${other}.service`;

/** Whether a service is held back until the admission. */
export function isDeferred(platform: Platform, paths: Paths, name: string): boolean {
  const deferred = readText(platform, deferredPath(paths), AGENT_SERVICE_NOTES_BYTES_MAX) ?? '';
  return deferred.split('\n').some((other) => other !== '' && isSameService(other, name));
}

/** Takes a service out of those that are held back; false if it was none. */
function takeDeferred(platform: Platform, paths: Paths, name: string): boolean {
  const deferred = (readText(platform, deferredPath(paths), AGENT_SERVICE_NOTES_BYTES_MAX) ?? '').split('\n');
  const isSame = (other: string) => isSameService(other, name);
  const rest = deferred.filter((other) => other !== '' && !isSame(other));
  if (!deferred.some(isSame)) return false;
  platform.files.remove(deferredPath(paths));
  noteDeferred(platform, paths, rest);
  return true;
}

/** Lets systemd begin anew from its present files, keeping its state (systemctl(1), daemon-reexec); false where that does not do. */
export async function renewInit(platform: Platform, paths: Paths): Promise<boolean> {
  if (!isSystemd(platform, paths)) return false;
  await systemctl(platform, paths, ['daemon-reexec']);
  return !isInitStale(platform, paths);
}

type ServicePlan = {
  /** Stopped now. */
  readonly stop: readonly string[];
  /** Started at the admission. */
  readonly start: readonly string[];
  /** Restarted now: what belongs to the early boot waits for no network. */
  readonly restart: readonly string[];
};

export function isSystemd(platform: Platform, paths: Paths): boolean {
  const hasBooted = platform.files.stat(`${runFolder(paths)}/systemd/system`) !== null;
  return hasBooted && findProgram(platform, paths, 'systemctl') !== null;
}

/** What package scripts asked for, by service. Their notes are gone afterwards. */
function takeWanted(platform: Platform, paths: Paths): Map<string, Set<string>> {
  const wanted = new Map<string, Set<string>>();
  const text = readText(platform, wantedPath(paths), AGENT_SERVICE_NOTES_BYTES_MAX) ?? '';
  for (const line of text.split('\n')) {
    const [name = '', action = ''] = line.split(' ');
    if (!NAME.test(name) || name === OWN_SERVICE || name === `${OWN_SERVICE}.service`) continue;
    wanted.set(name, (wanted.get(name) ?? new Set()).add(action));
  }
  if (text !== '') platform.files.remove(wantedPath(paths));
  return wanted;
}

const isStart = (actions: ReadonlySet<string> | undefined) => actions?.has('start') || actions?.has('restart');

async function planUnits(
  platform: Platform,
  paths: Paths,
  wanted: ReadonlyMap<string, ReadonlySet<string>>,
): Promise<ServicePlan> {
  const stop: string[] = [];
  const start: string[] = [];
  const restart: string[] = [];
  for (const [name, actions] of wanted) {
    const unit = /\.[a-z]+$/.test(name) ? name : `${name}.service`;
    const properties = ['ActiveState', 'UnitFileState', 'DefaultDependencies'].map((property) => `-p${property}`);
    const shown = (await systemctl(platform, paths, ['show', ...properties, unit])).output;
    const isActive = /^ActiveState=(active|reloading)$/m.test(shown);
    const isEnabled = /^UnitFileState=(enabled|enabled-runtime|alias|static|generated)$/m.test(shown);
    const isEarly = /^DefaultDependencies=no$/m.test(shown);
    if (isActive && isEarly) restart.push(unit);
    else if (isActive) stop.push(unit);
    const isBack = isActive ? !isEarly && (isStart(actions) || !actions.has('stop')) : isEnabled && isStart(actions);
    if (isBack) start.push(unit);
  }
  return { stop, start, restart };
}

/** sysvinit and the like: scripts in /etc/init.d, enabled by links in /etc/rc?.d. */
async function planScripts(
  platform: Platform,
  paths: Paths,
  wanted: ReadonlyMap<string, ReadonlySet<string>>,
): Promise<ServicePlan> {
  const stop: string[] = [];
  const start: string[] = [];
  for (const [unit, actions] of wanted) {
    const name = unit.replace(/\.service$/, '');
    const script = `${paths.etc}/init.d/${name}`;
    if (platform.files.stat(script) === null) continue;
    const status = await call(platform, paths, [script, 'status']);
    const isActive = status.exitCode === 0;
    if (isActive) stop.push(name);
    if (isActive || (isStart(actions) && isEnabledScript(platform, paths, name))) start.push(name);
  }
  return { stop, start, restart: [] };
}

function isEnabledScript({ files }: Platform, paths: Paths, name: string): boolean {
  return ['2', '3', '4', '5'].some((level) =>
    files.list(`${paths.etc}/rc${level}.d`).some((link) => /^S\d\d/.test(link) && link.slice(3) === name),
  );
}

function noteDeferred(platform: Platform, paths: Paths, names: readonly string[]): void {
  if (names.length === 0) return;
  const before = readText(platform, deferredPath(paths), AGENT_SERVICE_NOTES_BYTES_MAX) ?? '';
  const file = platform.files.create(`${deferredPath(paths)}.new`, 0o644);
  try {
    file.write(platform.encode(before + names.map((name) => `${name}\n`).join('')));
  } finally {
    file.close();
  }
  platform.files.rename(`${deferredPath(paths)}.new`, deferredPath(paths));
}

async function callServices(
  platform: Platform,
  paths: Paths,
  verb: 'start' | 'stop',
  names: readonly string[],
): Promise<void> {
  if (names.length === 0) return;
  if (isSystemd(platform, paths)) {
    // A start is only asked for; the end of the old ones is waited for, because nothing old may run when the machine is plugged in.
    await systemctl(platform, paths, verb === 'start' ? ['--no-block', verb, ...names] : [verb, ...names]);
    return;
  }
  for (const name of names) await call(platform, paths, [`${paths.etc}/init.d/${name}`, verb]);
}

/** Asks systemd; what it answers is the caller's to judge. */
export async function systemctl(
  platform: Platform,
  paths: Paths,
  words: readonly string[],
  timeoutMs = AGENT_SERVICES_TIMEOUT_MS,
): Promise<RunResult> {
  const program = findProgram(platform, paths, 'systemctl') ?? 'systemctl';
  return await call(platform, paths, [program, ...words], timeoutMs);
}

async function call(
  platform: Platform,
  paths: Paths,
  argv: readonly string[],
  timeoutMs = AGENT_SERVICES_TIMEOUT_MS,
): Promise<RunResult> {
  const env = { LC_ALL: 'C', PATH: paths.programs.join(':') };
  const result = await platform.run({ argv, cwd: '/', env, timeoutMs });
  const isQuestion = ['show', 'status', 'is-active', 'is-enabled'].some((word) => argv.includes(word));
  if (result.exitCode !== 0 && !isQuestion) platform.log(`${argv.join(' ')}: exit ${result.exitCode} ${result.output}`);
  return result;
}
