// Is this host fit? Each check with its state and how to mend it. What touches the machine comes in as ports.
import { constants } from 'node:fs';
import { access, readFile, stat, statfs } from 'node:fs/promises';
import type { Clock } from '../src/base/clock.ts';
import { isoTime } from '../src/base/clock.ts';
import { DOCTOR_COMMAND_TIMEOUT_MS, TRUST_BEHIND_MAX_MS, TRUST_JUMP_MAX_MS } from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import { counted, printable } from '../src/base/printable.ts';
import { tryCommand } from '../src/base/run-command.ts';
import type { TrustTime } from '../src/base/trust-time.ts';
import { probeAccelerator } from '../src/hypervisor/qmp/accel.ts';
import type { VmSpec } from '../src/hypervisor/vm-spec.ts';
import { matchesProduct } from '../src/model/policy.ts';
import { breakGlassCommands } from './break-glass.ts';
import type { Config } from './config.ts';
import { checkExports } from './doctor-exports.ts';
import type { DoctorLine, DoctorPorts } from './doctor-line.ts';
import { type Scrubbing, scrubLine } from './scrubbing.ts';
import { ungatedNicsOf } from './vm-policy.ts';

export type DoctorHost = {
  readonly config: Config;
  readonly clock: Clock;
  readonly log: Log;
  readonly runs?: ReadonlyMap<string, { readonly spec: VmSpec }>;
  /** Of a running daemon only. */
  readonly trustTime?: Pick<TrustTime, 'behindMs' | 'unsettledMs' | 'nowMs'>;
  readonly scrubbing?: Pick<Scrubbing, 'view'>;
};

const QEMU_BINARY = 'qemu-system-x86_64';
/** What this project is tested with; older ones lack `-action reboot=shutdown,shutdown=pause` in this form. */
const QEMU_VERSION_MIN = [7, 2] as const;
const SPACE_UNFIT_BYTES = 256 * 1024 * 1024;
const SPACE_WARNING_BYTES = 2 * 1024 * 1024 * 1024;
/** 2026-01-01: a clock before this is wrong, and would make expired signatures look good. */
const CLOCK_EARLIEST_MS = 1_767_225_600_000;

const ok = (check: string, detail: string): DoctorLine => ({ check, state: 'ok', detail, mend: null });
const bad = (check: string, state: 'warning' | 'unfit', detail: string, mend: string): DoctorLine => ({
  check,
  state,
  detail,
  mend,
});

/** All checks, and for each VM the commands that plug it in by hand. Never throws for a missing tool. */
export async function runDoctor(host: DoctorHost, ports = hostPorts(host)): Promise<readonly DoctorLine[]> {
  const { config } = host;
  const lines = await Promise.all([
    checkRights(ports),
    checkKvm(ports),
    checkQemu(ports),
    checkNft(ports),
    ...TOOLS.map(async (tool) => await checkTool(tool, ports)),
    checkInspection(ports),
    checkExports(
      [...(host.runs?.values() ?? [])].map(({ spec }) => spec),
      config.runFolder,
      ports,
    ),
    checkTun(ports),
    checkBridgeNetfilter(ports),
    checkFolder('data folder', config.dataFolder, ports),
    checkFolder('run folder', config.runFolder, ports),
    checkSpace(config, ports),
    checkClock(ports),
    ...(host.trustTime === undefined ? [] : [checkTrustTime(host.trustTime)]),
    ...(host.scrubbing === undefined ? [] : [scrubLine(host.scrubbing.view())]),
    checkAptSources(config, ports),
    checkNics([...(host.runs?.values() ?? [])].map(({ spec }) => spec)),
    checkGroups(config.groups, [...(host.runs?.keys() ?? [])]),
  ]);
  const byHand = [...(host.runs?.values() ?? [])].map(({ spec }) =>
    ok(`break-glass ${spec.vm}`, breakGlassCommands(spec, config.runFolder).join(' && ')),
  );
  return [...lines, ...byHand];
}

/** The real machine. */
export function hostPorts({ clock, log }: DoctorHost): DoctorPorts {
  return {
    probeKvm: async () => (await probeAccelerator(QEMU_BINARY, clock, log)) === 'kvm',
    run: async (argv) => {
      try {
        const { exitCode, stdout, stderr } = await tryCommand(argv, { timeoutMs: DOCTOR_COMMAND_TIMEOUT_MS });
        return { exitCode, text: stdout + stderr };
      } catch {
        return null; // Not installed, or too much output: either way it is of no use to us.
      }
    },
    mayUse: async (path) =>
      await access(path, constants.R_OK | constants.W_OK).then(
        () => true,
        () => false,
      ),
    readText: async (path) => await readFile(path, 'utf8').catch(() => null),
    folder: async (path) => {
      const { bavail, bsize } = await statfs(await nearestFolder(path));
      const mode = await stat(path).then(
        (found) => found.mode & 0o777,
        () => null,
      );
      return { freeBytes: bavail * bsize, mode };
    },
    nowMs: clock.nowMs,
    uid: process.getuid?.() ?? 0,
  };
}

async function nearestFolder(path: string): Promise<string> {
  let folder = path;
  while (
    folder !== '/' &&
    !(await stat(folder).then(
      (found) => found.isDirectory(),
      () => false,
    ))
  ) {
    folder = folder.slice(0, Math.max(1, folder.lastIndexOf('/')));
  }
  return folder;
}

/** NICs that the operator took out of the gate, on purpose or not. */
function checkNics(specs: readonly VmSpec[]): DoctorLine {
  const some = specs.filter((spec) => ungatedNicsOf(spec).length > 0);
  const whole = some.filter((spec) => ungatedNicsOf(spec).length === spec.nics.length);
  const list = (found: readonly VmSpec[]) =>
    found.map((spec) => `${spec.vm} (${ungatedNicsOf(spec).join(', ')})`).join('; ');
  if (whole.length > 0) {
    const mend = 'take `gated = false` out of the spec of at least one NIC, then remove the VM and add it again';
    return bad('ungated NICs', 'warning', `no NIC is gated of ${printable(list(whole), 400)}`, mend);
  }
  return ok('ungated NICs', some.length === 0 ? 'none' : printable(list(some), 400));
}

/** A name or a beginning of names that no VM has may be a typo, and the VM it was meant for has another policy then. */
function checkGroups(groups: Config['groups'], vms: readonly string[]): DoctorLine {
  const check = 'policy groups';
  const idle = Object.entries(groups).flatMap(([group, { vms: patterns }]) =>
    patterns.filter((pattern) => !vms.some((vm) => matchesProduct([pattern], vm))).map((one) => `${one} (${group})`),
  );
  if (vms.length === 0 || idle.length === 0) return ok(check, counted(Object.keys(groups).length, 'group'));
  const mend = 'look for a typo in `vms` of the group; `pratique vm policy VM` shows which group a VM is in';
  return bad(check, 'warning', `no VM is called ${printable(idle.join(', '), 400)}`, mend);
}

async function checkRights({ uid }: DoctorPorts): Promise<DoctorLine> {
  if (uid === 0) return ok('rights', 'runs as root');
  const mend = 'run the daemon as root, or keep every VM in a namespace of your own (`unshare -Urn`)';
  return bad('rights', 'warning', `runs as user ${uid}: no taps and no fence in the host's own network`, mend);
}

async function checkKvm(ports: DoctorPorts): Promise<DoctorLine> {
  if (await ports.probeKvm()) return ok('kvm', 'a throw-away VM ran with hardware virtualisation');
  const mend =
    'enable virtualisation in the firmware (or nested virtualisation) and load the module kvm_intel or kvm_amd';
  return bad('kvm', 'warning', 'KVM does not work: guests are emulated, which is slow', mend);
}

async function checkQemu(ports: DoctorPorts): Promise<DoctorLine> {
  const mend = 'install the package qemu-system-x86, version 7.2 or newer';
  const answer = await ports.run([QEMU_BINARY, '--version']);
  const version = /version (\d+)\.(\d+)\S*/.exec(answer?.text ?? '');
  if (answer?.exitCode !== 0 || version === null) return bad('qemu', 'unfit', `${QEMU_BINARY} is not usable`, mend);
  const [major, minor] = [Number(version[1]), Number(version[2])];
  const [majorMin, minorMin] = QEMU_VERSION_MIN;
  const isOld = major < majorMin || (major === majorMin && minor < minorMin);
  return isOld ? bad('qemu', 'unfit', `QEMU ${major}.${minor} is too old`, mend) : ok('qemu', printable(version[0]));
}

async function checkNft(ports: DoctorPorts): Promise<DoctorLine> {
  const version = await ports.run(['nft', '--version']);
  if (version?.exitCode !== 0) return bad('nft', 'unfit', 'nft is not usable', 'install the package nftables');
  if (ports.uid !== 0) return ok('nft', printable(version.text.trim()));
  const listed = await ports.run(['nft', 'list', 'tables', 'bridge']);
  if (listed?.exitCode === 0) return ok('nft', printable(version.text.trim()));
  const mend = 'use a kernel with nf_tables and its bridge family (module nft_meta_bridge)';
  return bad('nft', 'unfit', `nft cannot list tables of the bridge family: ${printable(listed?.text ?? '')}`, mend);
}

type Tool = {
  readonly name: string;
  readonly argv: readonly string[];
  readonly need: string;
  readonly package: string;
};

const TOOLS: readonly Tool[] = [
  { name: 'ip', argv: ['ip', '-V'], need: 'makes taps and bridges', package: 'iproute2' },
  { name: 'perl', argv: ['perl', '-e', '1'], need: 'starts QEMU with inherited taps', package: 'perl-base' },
  { name: 'setpriv', argv: ['setpriv', '--version'], need: "takes QEMU's rights away", package: 'util-linux' },
  { name: 'gpgv', argv: ['gpgv', '--version'], need: "checks Debian's signatures", package: 'gpgv' },
  { name: 'xz', argv: ['xz', '--version'], need: "unpacks Debian's package lists", package: 'xz-utils' },
];

async function checkTool(tool: Tool, ports: DoctorPorts): Promise<DoctorLine> {
  const answer = await ports.run(tool.argv);
  if (answer?.exitCode === 0) return ok(tool.name, printable(answer.text.split('\n')[0] || tool.need));
  return bad(tool.name, 'unfit', `${tool.name} is missing; it ${tool.need}`, `install the package ${tool.package}`);
}

/** Without it everything works; only a VM's first boot waits for its downloads. */
async function checkInspection(ports: DoctorPorts): Promise<DoctorLine> {
  const check = 'disk inspection';
  const missing = (what: string, mend: string) =>
    bad(check, 'warning', `${what}: switched-off disks cannot be looked into`, mend);
  const storage = await ports.run(['qemu-storage-daemon', '--version']);
  if (storage?.exitCode !== 0)
    return missing('qemu-storage-daemon is missing', 'install the package qemu-system-common');
  const debugfs = await ports.run(['debugfs', '-V']);
  if (debugfs?.exitCode !== 0) return missing('debugfs is missing', 'install the package e2fsprogs');
  if (!(await ports.mayUse('/dev/fuse')))
    return missing('/dev/fuse cannot be opened', 'load the module fuse (as root)');
  return ok(check, 'switched-off disks can be looked into');
}

async function checkTun(ports: DoctorPorts): Promise<DoctorLine> {
  if (await ports.mayUse('/dev/net/tun')) return ok('tun', '/dev/net/tun can be opened');
  return bad(
    'tun',
    'unfit',
    '/dev/net/tun cannot be opened: no VM gets a network card',
    'load the module tun (as root)',
  );
}

async function checkBridgeNetfilter(ports: DoctorPorts): Promise<DoctorLine> {
  const value = await ports.readText('/proc/sys/net/bridge/bridge-nf-call-iptables');
  if (value?.trim() !== '1') return ok('bridge netfilter', 'bridged frames do not pass the IP rules of this host');
  const mend = 'sysctl net.bridge.bridge-nf-call-iptables=0, unless you want these rules for VMs';
  return bad(
    'bridge netfilter',
    'warning',
    "the host's IP rules also apply to plugged-in VMs and may drop their packets",
    mend,
  );
}

async function checkFolder(check: string, path: string, ports: DoctorPorts): Promise<DoctorLine> {
  const { mode } = await ports.folder(path);
  if (mode === null) return ok(check, `${path} will be made`);
  if ((mode & 0o022) === 0) return ok(check, path);
  return bad(check, 'unfit', `${path} can be written by others (mode ${mode.toString(8)})`, `chmod go-w ${path}`);
}

async function checkSpace({ dataFolder }: Config, ports: DoctorPorts): Promise<DoctorLine> {
  const { freeBytes } = await ports.folder(dataFolder);
  const detail = `${Math.floor(freeBytes / 1_000_000)} MB free for ${dataFolder}`;
  if (freeBytes >= SPACE_WARNING_BYTES) return ok('space', detail);
  const mend = 'free space, or set dataFolder to a larger file system';
  return bad('space', freeBytes < SPACE_UNFIT_BYTES ? 'unfit' : 'warning', detail, mend);
}

async function checkClock(ports: DoctorPorts): Promise<DoctorLine> {
  const now = ports.nowMs();
  const mend = 'set the clock, and keep it with systemd-timesyncd or chrony';
  if (now < CLOCK_EARLIEST_MS)
    return bad('clock', 'unfit', `the clock says ${isoTime(now)}: signatures cannot be dated`, mend);
  const answer = await ports.run(['timedatectl', 'show', '--property=NTPSynchronized', '--value']);
  if (answer?.exitCode !== 0) return ok('clock', `${isoTime(now)}; whether it is kept by NTP is not known`);
  return answer.text.trim() === 'yes'
    ? ok('clock', `${isoTime(now)}, kept by NTP`)
    : bad('clock', 'warning', `${isoTime(now)}, not kept by NTP`, mend);
}

/** A clock that was set back gains nothing, but one that had been wrong by years makes every signature look expired. */
function checkTrustTime(time: Pick<TrustTime, 'behindMs' | 'unsettledMs' | 'nowMs'>): DoctorLine {
  const check = 'trust time';
  const behindMs = time.behindMs();
  if (behindMs > TRUST_BEHIND_MAX_MS) {
    const state = behindMs > TRUST_JUMP_MAX_MS ? 'unfit' : 'warning';
    const detail = `the clock is ${spanText(behindMs)} behind what this host was once sure of; signatures are held against ${isoTime(time.nowMs())}`;
    const mend =
      'if the clock is right now and was wrong then: pratique clock accept --reason TEXT; otherwise set the clock';
    return bad(check, state, detail, mend);
  }
  const aheadMs = time.unsettledMs();
  if (aheadMs === 0) return ok(check, 'never earlier than any time that this host was sure of');
  const detail = `the clock jumped ahead by ${spanText(aheadMs)}; that counts for good when it has stood there for an hour`;
  return bad(
    check,
    'warning',
    detail,
    'nothing if the clock is right (the host was off for long); otherwise set it now',
  );
}

function spanText(ms: number): string {
  const [unit, size] = (
    [
      ['day', 86_400_000],
      ['hour', 3_600_000],
      ['minute', 60_000],
    ] as const
  ).find((each) => ms >= each[1]) ?? ['second', 1_000];
  return counted(Math.max(1, Math.round(ms / size)), unit);
}

async function checkAptSources({ vendors }: Config, ports: DoctorPorts): Promise<DoctorLine> {
  const needed = vendors.some((vendor) => vendor.kind === 'debian-apt' && vendor.url === undefined);
  const answer = await ports.run(['apt-get', 'indextargets', '--format', '$(SITE)', 'Created-By: Packages']);
  const count = new Set((answer?.text ?? '').split('\n').filter((line) => /^\w+:/.test(line))).size;
  if (answer?.exitCode === 0 && count > 0) return ok('apt sources', `${count} archives in the host's apt sources`);
  const mend = 'fill /etc/apt/sources.list, or give the vendor a url';
  return bad(
    'apt sources',
    needed ? 'unfit' : 'warning',
    'the host has no apt sources to take Debian updates from',
    mend,
  );
}
