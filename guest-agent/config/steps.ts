// What makes written configuration count: the running name, the network, units of systemd or scripts of /etc/init.d.
import { AGENT_SERVICE_NOTES_BYTES_MAX, AGENT_SERVICES_TIMEOUT_MS } from '../../src/base/limits.ts';
import { readText } from '../durable.ts';
import { isDeferred, isSystemd, systemctl } from '../installers/service-starts.ts';
import { findProgram } from '../inventory.ts';
import type { Paths } from '../paths.ts';
import { AgentError, type Platform } from '../platform/platform.ts';
import type { Link, Step } from './change.ts';
import { callOf } from './network.ts';

const deferredPath = (paths: Paths) => `${paths.runtime}/deferred-network`;

/**
 * Carries out a step. Throws AgentError `apply-failed`; what the program printed is not in it, for it may be a piece of what was
 * configured. `isAdmitted`: whether the machine is plugged in, so that a unit may wait for the network.
 */
export async function runStep(platform: Platform, paths: Paths, step: Step, isAdmitted: boolean): Promise<void> {
  switch (step.do) {
    case 'hostname':
      setHostname(platform, paths, step.name);
      return;
    case 'network':
      return await setNetwork(platform, paths, step, isAdmitted);
    case 'restart':
    case 'reload':
      return await renewUnit(platform, paths, step, isAdmitted);
    default:
      step satisfies never;
  }
}

/** The same step for the files of before. */
export async function runStepBack(platform: Platform, paths: Paths, step: Step, isAdmitted: boolean): Promise<void> {
  const back: Step = step.do === 'hostname' ? { ...step, name: step.before } : step;
  try {
    await runStep(platform, paths, back, isAdmitted);
  } catch (error) {
    if (!(error instanceof AgentError)) throw error;
    // The files are as before; what does not start with them did not start before either.
    platform.log(`after the roll back: ${error.message}`);
  }
}

/** systemd must know of changed unit files before they are asked for. */
export async function reloadUnits(platform: Platform, paths: Paths): Promise<void> {
  if (isSystemd(platform, paths)) await systemctl(platform, paths, ['daemon-reload']);
}

function setHostname(platform: Platform, paths: Paths, name: string): void {
  if (name !== '') platform.files.overwrite(`${paths.proc}/sys/kernel/hostname`, platform.encode(`${name}\n`));
}

async function renewUnit(
  platform: Platform,
  paths: Paths,
  { do: verb, unit }: Extract<Step, { do: 'restart' | 'reload' }>,
  isAdmitted: boolean,
): Promise<void> {
  // An update of this run holds it back until the admission: then it starts with what it finds.
  if (isDeferred(platform, paths, unit)) return;
  if (!isSystemd(platform, paths)) {
    const script = `${paths.etc}/init.d/${unit.replace(/\.service$/, '')}`;
    if (platform.files.stat(script) === null) throw new AgentError('apply-failed', `there is no ${script} to ${verb}`);
    return await must(platform, paths, [script, verb], `${verb} of ${unit}`);
  }
  // Before the admission a unit that is not up yet may wait for the network, which waits for us: it is only asked for.
  const isUp = (await systemctl(platform, paths, ['is-active', '--quiet', unit])).exitCode === 0;
  const words =
    isAdmitted || isUp ? [verb, unit] : ['--no-block', verb === 'reload' ? 'reload-or-restart' : verb, unit];
  const program = findProgram(platform, paths, 'systemctl') ?? 'systemctl';
  await must(platform, paths, [program, ...words], `${verb} of ${unit}`);
}

async function setNetwork(
  platform: Platform,
  paths: Paths,
  { way, links }: Extract<Step, { do: 'network' }>,
  isAdmitted: boolean,
): Promise<void> {
  switch (way) {
    case 'networkd':
      return await renewNetworkd(platform, paths, links);
    case 'network-manager':
      return await renewConnections(platform, paths, links, isAdmitted);
    case 'ifupdown': {
      // Whoever asks for an address waits for an answer: there is none while the cable is unplugged.
      const isNow = ({ isDhcp }: Link) => isAdmitted || !isDhcp;
      noteDeferred(
        platform,
        paths,
        links.filter((link) => !isNow(link)),
      );
      for (const link of links.filter(isNow)) await renewLink(platform, paths, link.name);
      return;
    }
    default:
      way satisfies never;
  }
}

/** One that does not run yet reads its files when it starts. */
async function renewNetworkd(platform: Platform, paths: Paths, links: readonly Link[]): Promise<void> {
  if ((await systemctl(platform, paths, ['is-active', '--quiet', 'systemd-networkd.service'])).exitCode !== 0) return;
  const networkctl = findProgram(platform, paths, 'networkctl');
  if (networkctl === null) throw new AgentError('apply-failed', 'this guest has no networkctl');
  await must(platform, paths, [networkctl, 'reload'], 'networkctl reload');
  const names = links.flatMap(({ name }) => (name === null ? [] : [name]));
  if (names.length > 0) await must(platform, paths, [networkctl, 'reconfigure', ...names], 'networkctl reconfigure');
}

/** Without a carrier NetworkManager activates nothing; it takes ours, by its priority, when the cable is plugged in. */
async function renewConnections(
  platform: Platform,
  paths: Paths,
  links: readonly Link[],
  isAdmitted: boolean,
): Promise<void> {
  const nmcli = findProgram(platform, paths, 'nmcli');
  if (nmcli === null) throw new AgentError('apply-failed', 'this guest has no nmcli');
  if ((await systemctl(platform, paths, ['is-active', '--quiet', 'NetworkManager.service'])).exitCode !== 0) return;
  await must(platform, paths, [nmcli, 'connection', 'reload'], 'nmcli connection reload');
  if (!isAdmitted) return;
  for (const { name } of links)
    if (name !== null) await must(platform, paths, [nmcli, 'device', 'connect', name], `nmcli device connect ${name}`);
}

/** Down and up again: what was set before, by whomever, goes. */
async function renewLink(platform: Platform, paths: Paths, name: string | null): Promise<void> {
  if (name === null) return;
  const [ifdown, ifup, ip] = ['ifdown', 'ifup', 'ip'].map((program) => callOf(platform, paths, program));
  if (ifdown == null || ifup == null || ip == null)
    throw new AgentError('apply-failed', 'this guest has no ifup or no ip');
  // Debian's own program and busybox's have different short options, and busybox knows no long ones.
  const force = findProgram(platform, paths, 'ifquery') === null ? '-f' : '--force';
  await call(platform, paths, [...ifdown, force, name]);
  await call(platform, paths, [...ip, 'address', 'flush', 'dev', name]);
  await must(platform, paths, [...ifup, ...(force === '-f' ? [force] : []), name], `ifup ${name}`);
}

function noteDeferred(platform: Platform, paths: Paths, links: readonly Link[]): void {
  const names = links.flatMap(({ name }) => (name === null ? [] : [name]));
  if (names.length === 0) return;
  const file = platform.files.create(deferredPath(paths), 0o600);
  try {
    file.write(platform.encode(names.map((name) => `${name}\n`).join('')));
  } finally {
    file.close();
  }
}

/** The machine is plugged in: interfaces that ask for their address may do so. Nobody waits for it. */
export async function startDeferredNetwork(platform: Platform, paths: Paths): Promise<void> {
  const names = (readText(platform, deferredPath(paths), AGENT_SERVICE_NOTES_BYTES_MAX) ?? '').split('\n');
  if (names.length < 2) return;
  platform.files.remove(deferredPath(paths));
  for (const name of names) if (/^[A-Za-z0-9][A-Za-z0-9._:-]*$/.test(name)) await renewLink(platform, paths, name);
}

async function must(platform: Platform, paths: Paths, argv: readonly string[], what: string): Promise<void> {
  const { exitCode, isTimeout } = await call(platform, paths, argv);
  if (exitCode === 0) return;
  const how = isTimeout ? 'took too long' : `ended with ${exitCode === null ? 'a signal' : `exit code ${exitCode}`}`;
  throw new AgentError('apply-failed', `${what} ${how}; the guest's own log says why`);
}

async function call(platform: Platform, paths: Paths, argv: readonly string[]) {
  const env = { LC_ALL: 'C', PATH: paths.programs.join(':') };
  return await platform.run({ argv, cwd: '/', env, timeoutMs: AGENT_SERVICES_TIMEOUT_MS });
}
