// virt-customize in the bench `patch`: the switched-off disk is patched by libguestfs' appliance, then the VM is powered on.
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeVmDisk } from '../../images/images.ts';
import { systemClock } from '../../src/base/clock.ts';
import { type CommandResult, tryCommand } from '../../src/base/run-command.ts';
import type { VmId } from '../../src/model/ids.ts';
import { round } from './gate-figures.ts';
import { installedPeer } from './patch-peers.ts';
import { powerOn } from './patch-plain-vm.ts';
import {
  APT,
  exactVersions,
  GUEST_TIMEOUT_MS,
  type Method,
  NotMeasured,
  type Patched,
  type PatchSite,
  proveOverNetwork,
  type Slot,
  secondsBetween,
  sourcesList,
  specOf,
} from './patch-site.ts';

/** Where libguestfs' user-mode network shows the host's loopback (guestfs(3), guestfs_set_network). */
const HOST_AS_SEEN = '169.254.2.2';
const PROGRAM = 'virt-customize';
/** Milliseconds for the appliance to be built and started once. */
const PREPARE_TIMEOUT_MS = 600_000;

/** `online`: the appliance fetches lists and packages by its own network. `local`: the packages are put in, without a network. */
export function makeVirtCustomize(way: 'online' | 'local'): Method {
  return {
    name: `virt-customize-${way}`,
    title:
      way === 'online'
        ? 'virt-customize with its own network: apt-get update and install on the switched-off disk, then power-on'
        : 'virt-customize without a network, the packages fetched once by the host and copied in, then power-on',
    settings: [
      'LIBGUESTFS_BACKEND=direct; the appliance is built and in the page cache before',
      'no probe for KVM where KVM does not work (force_tcg): it would hang for minutes',
      'no translations of package lists, no recommended packages, no pseudo-terminal for dpkg; the same quick words for the kernel',
      ...(way === 'online' ? ['--network, the mirror one hop away on loopback'] : ['--no-network']),
    ],
    prepare: async (site) => {
      await installedPeer(PROGRAM);
      await mkdir(cacheOf(site), { recursive: true });
      await warmUp(site, way);
      if (way === 'online') {
        await writeFile(listOf(site), sourcesList(site.suite, `http://${HOST_AS_SEEN}:${site.mirror.port}/debian`));
      } else await fetchPackages(site);
    },
    patch: async (site, slot) => await patchOne(site, slot, way),
    close: async () => {},
  };
}

const cacheOf = ({ folder }: PatchSite): string => join(folder, 'libguestfs');
const listOf = ({ folder }: PatchSite): string => join(folder, 'sources.list');
const packagesOf = ({ folder }: PatchSite): string => join(folder, 'packages');

/** Builds the appliance and proves that it starts here at all. */
async function warmUp(site: PatchSite, way: string): Promise<void> {
  const name = `bench-appliance-${way}` as VmId; // It has the form of a VmId.
  const disk = await makeVmDisk({ image: site.image, folder: join(site.folder, 'disks'), vm: name });
  const result = await customize(site, disk.path, ['--no-network', '--run-command', 'true'], PREPARE_TIMEOUT_MS);
  if (result.exitCode === 0) return;
  const said = result.stderr.trim().split('\n').at(-1) ?? '';
  throw new NotMeasured(`virt-customize cannot start its appliance: ${said}`, 'run libguestfs-test-tool');
}

/** As an admin would once per host: the same files, through the counting relay. */
async function fetchPackages(site: PatchSite): Promise<void> {
  await mkdir(packagesOf(site), { recursive: true });
  for (const [file, path] of site.mirror.packagePaths()) {
    const answer = await fetch(`${site.mirror.url}/${path}`, { signal: site.signal });
    if (!answer.ok) throw new Error(`the relay answers ${answer.status} for ${file}`);
    await writeFile(join(packagesOf(site), decodeURIComponent(file)), Buffer.from(await answer.arrayBuffer()));
  }
}

async function patchOne(site: PatchSite, slot: Slot, way: 'online' | 'local'): Promise<Patched> {
  const spec = await specOf(site, slot, { hasAgent: false });
  const [disk] = spec.disks;
  if (disk === undefined) throw new Error('assertion failed: a VM of the bench has a disk');
  const steps = way === 'online' ? onlineSteps(site) : await localSteps(site);
  const startMs = systemClock.monotonicMs();
  const result = await customize(site, disk.path, steps, GUEST_TIMEOUT_MS);
  const patchedMs = systemClock.monotonicMs();
  if (result.exitCode !== 0) {
    throw new Error(`virt-customize ended with ${result.exitCode ?? result.signal}: ${result.stderr.slice(-2_000)}`);
  }
  const vm = await powerOn(site, slot, spec);
  try {
    await proveOverNetwork(site, slot);
  } finally {
    await vm.powerOff();
  }
  const reachedMs = systemClock.monotonicMs();
  return {
    seconds: secondsBetween(startMs, reachedMs),
    phases: { ...phasesOf(result.stdout, (patchedMs - startMs) / 1000), boot: secondsBetween(patchedMs, reachedMs) },
  };
}

function onlineSteps(site: PatchSite): readonly string[] {
  return [
    ...['--network', '--copy-in', `${listOf(site)}:/etc/apt`],
    ...['--run-command', `${APT} update`],
    ...['--run-command', `${APT} --only-upgrade install ${exactVersions(site.updates)}`],
  ];
}

async function localSteps(site: PatchSite): Promise<readonly string[]> {
  const files = await readdir(packagesOf(site));
  const paths = files.map((file) => `/tmp/packages/${file}`).join(' ');
  return ['--no-network', '--copy-in', `${packagesOf(site)}:/tmp`, '--run-command', `${APT} install ${paths}`];
}

async function customize(
  site: PatchSite,
  disk: string,
  steps: readonly string[],
  timeoutMs: number,
): Promise<CommandResult> {
  return await tryCommand([PROGRAM, '--format', 'qcow2', '-a', disk, ...steps], {
    timeoutMs,
    signal: site.signal,
    purpose: 'patching with virt-customize',
    env: {
      ...process.env,
      LIBGUESTFS_BACKEND: 'direct',
      LIBGUESTFS_CACHEDIR: cacheOf(site),
      LIBGUESTFS_APPEND: 'mitigations=off nokaslr',
      ...(site.accelerator === 'tcg' ? { LIBGUESTFS_BACKEND_SETTINGS: 'force_tcg' } : {}),
    },
  });
}

/** Seconds between the time stamps that virt-customize prints: `[  15.3] Running: …`. */
function phasesOf(printed: string, totalSeconds: number): Readonly<Record<string, number>> {
  const steps = [...printed.matchAll(/^\[\s*([0-9.]+)\] (.*)$/gm)].map(([, at, text = '']) => ({
    atSeconds: Number(at),
    phase: phaseOf(text),
  }));
  const phases: Record<string, number> = {};
  for (const [index, { atSeconds, phase }] of steps.entries()) {
    const untilSeconds = steps[index + 1]?.atSeconds ?? totalSeconds;
    phases[phase] = round((phases[phase] ?? 0) + untilSeconds - atSeconds, 2);
  }
  return phases;
}

function phaseOf(text: string): string {
  if (text.startsWith('Examining')) return 'appliance';
  if (/^Running: .* update$/.test(text)) return 'lists';
  if (/^Running: .* install /.test(text)) return 'install';
  return 'other';
}
