// The doctor's look at what it takes to show a drive over NBD or as one file, for the VMs that want it so.
import { printable } from '../src/base/printable.ts';
import type { VmSpec } from '../src/hypervisor/vm-spec.ts';
import type { DriveTransport } from '../src/model/drive.ts';
import type { DoctorLine, DoctorPorts } from './doctor-line.ts';

const CHECK = 'drive exports';

type Lack = { readonly transports: readonly DriveTransport[]; readonly what: string; readonly mend: string };

/** Whether drives can be exported; what is missing matters only to a VM that needs it. */
export async function checkExports(
  specs: readonly VmSpec[],
  runFolder: string,
  ports: DoctorPorts,
): Promise<DoctorLine> {
  const lacks = await findLacks(runFolder, ports);
  const needs = (spec: VmSpec, { transports }: Lack) => transports.includes(spec.drive?.transport ?? 'direct');
  for (const lack of lacks) {
    const hit = specs.filter((spec) => needs(spec, lack)).map(({ vm }) => vm);
    if (hit.length === 0) continue;
    const detail = `${lack.what}: no drive can be shown to ${printable(hit.join(', '), 400)}`;
    return { check: CHECK, state: 'unfit', detail, mend: lack.mend };
  }
  const [lack] = lacks;
  const detail =
    lack === undefined
      ? 'drives can be shown over NBD and as files'
      : `${lack.what}; no VM needs it (${lack.transports.join(', ')})`;
  return { check: CHECK, state: 'ok', detail, mend: null };
}

async function findLacks(runFolder: string, ports: DoctorPorts): Promise<readonly Lack[]> {
  const lacks: Lack[] = [];
  const both: readonly DriveTransport[] = ['nbd', 'file'];
  const storage = await ports.run(['qemu-storage-daemon', '--version']);
  if (storage?.exitCode !== 0) {
    const mend = 'install the package qemu-system-common';
    lacks.push({ transports: both, what: 'qemu-storage-daemon is missing', mend });
  }
  const { mode } = await ports.folder(runFolder);
  if (ports.uid === 0 && mode !== null && (mode & 0o001) === 0) {
    const what = `the users of VMs cannot pass through ${runFolder}`;
    lacks.push({ transports: both, what, mend: `chmod o+x ${runFolder}` });
  }
  if (!(await ports.mayUse('/dev/fuse'))) {
    lacks.push({ transports: ['file'], what: '/dev/fuse cannot be opened', mend: 'load the module fuse (as root)' });
  }
  if (ports.uid !== 0 && (await ports.run(['fusermount3', '--version']))?.exitCode !== 0) {
    const mend = 'install the package fuse3';
    lacks.push({ transports: ['file'], what: 'fusermount3 is missing, by which an ordinary user mounts', mend });
  }
  return lacks;
}
