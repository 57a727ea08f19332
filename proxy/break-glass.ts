// The commands that plug a VM in by hand when Pratique itself is broken: the gated VM may carry the host's own network.
import { join } from 'node:path';
import { FENCE_TABLE } from '../src/hypervisor/fence-rules.ts';
import { enterPrefix } from '../src/hypervisor/namespace.ts';
import { gatedTapsOf } from '../src/hypervisor/network.ts';
import { nicDevice } from '../src/hypervisor/qmp/command-line.ts';
import { runFiles } from '../src/hypervisor/qmp/run-files.ts';
import { gatedNics, type VmSpec } from '../src/hypervisor/vm-spec.ts';

/**
 * Sends its input to a unix socket and prints what is answered within two seconds. Perl, because the host has it anyway
 * (it starts our QEMUs), unlike socat or a netcat that knows unix sockets.
 */
const TALK_TO_SOCKET =
  'perl -MIO::Socket::UNIX -e \'$s = IO::Socket::UNIX->new(Peer => shift) or die "$!\\n"; $s->autoflush; ' +
  "print $s $_ while <STDIN>; $SIG{ALRM} = sub { exit }; alarm 2; print while <$s>'";

/**
 * Shell lines that plug a running VM in, in order: stop the daemon (QEMU's monitor takes one client, and the daemon would
 * close the gate again), lift the fence for its taps, raise its links and let it run if it was paused.
 */
export function breakGlassCommands(spec: VmSpec, runFolder: string): readonly string[] {
  const { taps, devices, qmpSocket } = doorsOf(spec, runFolder);
  const requests = [
    { execute: 'qmp_capabilities' },
    ...devices.map((name) => ({ execute: 'set_link', arguments: { name, up: true } })),
    { execute: 'cont' },
  ];
  const text = requests.map((request) => `${JSON.stringify(request)}\\n`).join('');
  return [
    'systemctl stop pratique || kill "$(cat RUN/daemon.pid)"'.replace('RUN', quotedPart(runFolder)),
    ...taps.map((tap) =>
      [...enterPrefix(spec.namespace ?? { kind: 'host' }), 'nft', 'add', 'element', FENCE_TABLE, 'admitted']
        .concat(shellWord(`{ "${tap}" }`))
        .join(' '),
    ),
    `printf ${shellWord(text)} | ${TALK_TO_SOCKET} ${shellWord(qmpSocket)}`,
  ];
}

/** The page of all VMs that the daemon keeps in the data folder, for the day on which it does not start. */
export function breakGlassPage(specs: readonly VmSpec[], runFolder: string): string {
  const head = [
    '# Pratique: plugging a VM in by hand, when Pratique itself is broken. Run as root.',
    '# Nothing is checked and nothing is recorded. The VM must be running. See docs/break-glass.md.',
  ];
  const parts = specs.map((spec) => ['', `# VM ${spec.vm}`, ...breakGlassCommands(spec, runFolder)].join('\n'));
  return `${[...head, ...parts].join('\n')}\n`;
}

/** Where the daemon keeps that page. */
export function breakGlassPath(dataFolder: string): string {
  return join(dataFolder, 'break-glass.txt');
}

type Doors = { readonly taps: readonly string[]; readonly devices: readonly string[]; readonly qmpSocket: string };

function doorsOf(spec: VmSpec, runFolder: string): Doors {
  if (spec.kind === 'attached') {
    return {
      taps: gatedNics(spec.nics).map(({ tap }) => tap),
      devices: gatedNics(spec.nics).map(({ id }) => id),
      qmpSocket: spec.qmpSocket,
    };
  }
  return {
    taps: gatedTapsOf(spec).map(({ name }) => name),
    devices: gatedNics(spec.nics).map(({ id }) => nicDevice(id)),
    qmpSocket: runFiles(runFolder, spec.vm).qmpSocket,
  };
}

/** The text as one word of a POSIX shell. */
function shellWord(text: string): string {
  return /^[A-Za-z0-9_./:=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A path inside a double-quoted shell word. */
function quotedPart(path: string): string {
  return path.replace(/["$`\\]/g, '\\$&');
}
