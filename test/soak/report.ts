// What the soak says at its end: one table, what is wrong, and one plain closing line.
import type { SoakReport } from './soak.ts';

/** The report as text, with a newline at its end. */
export function reportText(report: SoakReport): string {
  const { openings, runs, leaks, memory } = report;
  const last = report.samples.at(-1)?.found;
  const rows: readonly (readonly [string, string])[] = [
    ...Object.entries(report.faults).map(([name, times]) => [`fault: ${name}`, String(times)] as const),
    ['taps admitted in the kernel', String(openings.admitted)],
    ['links raised at fake QEMUs', String(openings.raised)],
    ['openings recorded by evidence', String(openings.byEvidence)],
    ['openings recorded by override', String(openings.byOverride)],
    ["real VMs' frames at the peer", String(openings.frames)],
    ['audit records, verified by the files', String(runs.auditRecords)],
    ['checkpoints taken', String(runs.checkpoints)],
    ['daemon processes', String(runs.daemons)],
    ["the daemon's resident memory at most", `${memory.residentMaxMB} MB`],
    ...leaks.trends.map(({ what, from, to, limit }) => [what, `${from} to ${to} (at most ${limit} more)`] as const),
    ...Object.entries(last ?? {}).map(([what, count]) => [`left at the end: ${what}`, String(count)] as const),
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return [
    ...rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`),
    basisLine(report),
    ...report.notLookedAt.map((what) => `not looked at here: ${what}`),
    ...report.wrong.map((text) => `wrong: ${text}`),
    closingLine(report),
    '',
  ].join('\n');
}

function basisLine({ leaks }: SoakReport): string {
  if (leaks.basis === null) return 'growth was not judged: no daemon lived through enough calms';
  const { calms, minutes, life } = leaks.basis;
  return `growth: daemon ${life}, ${calms} calms in ${minutes} minutes after its warm-up, after a garbage collection each`;
}

function closingLine(report: SoakReport): string {
  const { wrong, minutes, cycles, vms, openings } = report;
  const told = `${vms} VMs, ${cycles} cycles in ${minutes} minutes (seed ${report.seed}), ${openings.admitted} openings`;
  return wrong.length === 0
    ? `soak passed: ${told}, none of them wrong, nothing leaked`
    : `soak FAILED: ${told}, ${wrong.length} things wrong`;
}
