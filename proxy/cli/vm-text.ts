// VMs, plans, reasons and events as text for people. Pure; every foreign text goes through printable.
import { isoTime } from '../../src/base/clock.ts';
import { counted, printable } from '../../src/base/printable.ts';
import { productKey } from '../../src/model/inventory.ts';
import type { Plan } from '../../src/model/plan.ts';
import { leftOutText } from '../../src/update/remarks.ts';
import type { RunStateName, VmDetail, VmEventRecord, VmView, Why } from '../service.ts';
import type { Colour, Output } from './output.ts';
import { renderTable } from './table.ts';
import { durationText, sizeText } from './text.ts';
import { progressText } from './timeline.ts';

/** Products shown of one VM; `--json` has all of them. */
const PRODUCTS_SHOWN_MAX = 40;

/** The table of `vm list`. */
export function vmListText(vms: readonly VmView[], output: Output, nowMs: number): string {
  const head = ['VM', 'STATE', 'SINCE', 'GATE', 'OS', 'REASON'].map((title) => ({ title }));
  const rows = vms.map((view) => [
    view.vm,
    { text: view.state, paint: stateColour(view.state, output) },
    durationText(nowMs - view.sinceMs),
    view.gate,
    osText(view),
    view.why.isPlugged ? '' : view.why.reason,
  ]);
  return renderTable(head, rows, { columns: output.columns, ifEmpty: 'No VMs. Add one with: pratique vm add SPEC' });
}

function stateColour(state: RunStateName, output: Output): (text: string) => string {
  const colours: Partial<Record<RunStateName, Colour>> = { connected: 'green', quarantined: 'red', off: 'dim' };
  const colour = colours[state] ?? 'yellow';
  return (text) => output.paint(colour, text);
}

function osText({ os }: VmView): string {
  return os === null ? '-' : printable(`${os.id} ${os.versionId} ${os.arch}`, 60);
}

/** Who told what a VM has. */
export const SOURCES = {
  report: "the agent's report",
  confirm: "the agent's confirmation",
  disk: 'its disk, read while it was off',
} as const;

/** The page of `vm show`. */
export function vmText(vm: VmDetail, output: Output, nowMs: number): string {
  const { fenceDropped, why } = vm;
  const facts: readonly (readonly [string, string])[] = [
    ['state', `${vm.state} for ${durationText(nowMs - vm.sinceMs)}`],
    ['gate', vm.gate],
    ...(why.isPlugged
      ? []
      : ([
          ['why', why.reason],
          ['next', why.next],
        ] as const)),
    ['kind', vm.kind],
    ['os', osText(vm)],
    ['agent', vm.agentVersion ?? '-'],
    ['known from', vm.known === null ? '-' : `${SOURCES[vm.known.source]}, ${durationText(nowMs - vm.known.atMs)} ago`],
    ['run', vm.run ?? '-'],
    ['policy', policyLine(vm)],
    ...(vm.ungatedNics.length === 0 ? [] : ([['not gated', `NIC ${vm.ungatedNics.join(', ')}`]] as const)),
    ...why.remarks.map((remark) => ['note', remark] as const),
    ['fence dropped', `${fenceDropped.fromGuest} frames from the guest, ${fenceDropped.toGuest} to it`],
    ['spec', vm.specDigest],
  ];
  const lines = facts.map(([name, value]) => `${name.padEnd(14)} ${printable(value, 1_000)}`);
  const products = vm.products.slice(0, PRODUCTS_SHOWN_MAX);
  const head = ['PRODUCT', 'VERSION', 'ECOSYSTEM', 'STATE'].map((title) => ({ title }));
  const table = renderTable(
    head,
    products.map(({ product, arch, version, ecosystem, state }) => [
      arch === undefined ? product : `${product}:${arch}`,
      version,
      ecosystem,
      state,
    ]),
    { columns: output.columns, ifEmpty: 'No products known yet.' },
  );
  const more = vm.products.length - products.length;
  const rest = more > 0 ? [`… and ${more} more; --json shows all`] : [];
  return [printable(vm.vm), ...lines, '', table, ...rest, ...configLines(vm, output)].join('\n');
}

/** Applied configuration, where there is any. */
function configLines({ config }: VmDetail, output: Output): readonly string[] {
  if (config.length === 0) return [];
  const head = ['CONFIGURATION', 'VERSION', 'STATE'].map((title) => ({ title }));
  const rows = config.map(({ item, version, state }) => [item, version, state ?? 'applied']);
  return ['', renderTable(head, rows, { columns: output.columns, ifEmpty: '' })];
}

/** The policy in a line; `vm policy` has all of it. */
function policyLine({ policy, group, tenant }: VmDetail): string {
  const held = policy.holds.length === 0 ? [] : [`holds ${policy.holds.join(' ')}`];
  const words = [
    policy.install === 'listed' ? `install ${policy.packages.join(' ')}` : `install ${policy.install}`,
    `reboot ${policy.allowReboot ? 'allowed' : 'not allowed'}`,
    ...held,
    ...(policy.infrastructure ? ['infrastructure'] : []),
    ...(policy.verify === 'disk' ? ['verified on its disk'] : []),
    ...(policy.overlay ? ['on an overlay'] : []),
    ...(group === null ? [] : [`group ${group}`]),
    ...(tenant === 'default' ? [] : [`tenant ${tenant}`]),
  ];
  return words.join(', ');
}

/** One paragraph per VM: what keeps it, and what to do. */
export function whyText(reasons: readonly Why[]): string {
  if (reasons.length === 0) return 'Every VM is plugged in.';
  return reasons
    .map(({ vm, state, isPlugged, reason, next, remarks }) => {
      const head = `${printable(vm)} is ${state}${isPlugged ? '' : ', not plugged in'}: ${printable(reason, 1_000)}`;
      const notes = remarks.map((remark) => `\n  note: ${printable(remark, 1_000)}`).join('');
      return `${head}\n  next: ${printable(next, 1_000)}${notes}`;
    })
    .join('\n');
}

/** The table of `vm plan`. */
export function planText(plan: Plan, output: Output): string {
  const head = [
    { title: 'PRODUCT' },
    { title: 'INSTALLED' },
    { title: 'NEW' },
    { title: 'KIND' },
    { title: 'SIZE', alignRight: true },
    { title: 'ADVISORIES' },
  ];
  const rows = plan.items.map(({ id, fromVersion, release }) => [
    id,
    fromVersion ?? '-',
    release.version,
    { text: release.kind, paint: (text: string) => (release.kind === 'security' ? output.paint('red', text) : text) },
    sizeText(release.artifact.sizeBytes),
    release.advisories.join(' '),
  ]);
  const isAsConfigured = planConfigRows(plan).length === 0;
  const ifEmpty = isAsConfigured ? 'Nothing to install: up to date.' : 'No software to install.';
  const table = renderTable(head, rows, { columns: output.columns, ifEmpty });
  const stale = plan.vendors
    .filter(({ fresh }) => !fresh)
    .map(({ vendor }) => `Not fresh: vendor ${printable(vendor)}`);
  const sizeBytes = plan.items.reduce((sum, { release }) => sum + release.artifact.sizeBytes, 0);
  const total =
    rows.length === 0 ? [] : [`${counted(rows.length, 'item')}, at most ${sizeText(sizeBytes)} to download`];
  return [table, ...total, ...planConfigLines(plan, output), ...leftOutLines(plan, output), ...stale].join('\n');
}

function planConfigRows({ config = [], configRemoved = [] }: Plan): readonly (readonly string[])[] {
  return [
    ...config.map(({ item, fromVersion, version, kind }) => [item, kind, fromVersion ?? '-', version]),
    ...configRemoved.map(({ item, version }) => [item, '-', version, '(taken back)']),
  ];
}

/** What would be configured; what an item says is shown by `config show`. */
function planConfigLines(plan: Plan, output: Output): readonly string[] {
  const rows = planConfigRows(plan);
  if (rows.length === 0) return [];
  const head = ['CONFIGURATION', 'KIND', 'APPLIED', 'NEW'].map((title) => ({ title }));
  return ['', renderTable(head, rows, { columns: output.columns, ifEmpty: '' })];
}

/** What the plan does without, security in red. */
function leftOutLines({ leftOut }: Plan, output: Output): readonly string[] {
  if (leftOut.length === 0) return [];
  const lines = leftOut.map((entry) => {
    const text = `  ${leftOutText({ ...entry, item: productKey(entry) })}`;
    return entry.kind === 'security' ? output.paint('red', text) : text;
  });
  return ['', `Left out: ${counted(leftOut.length, 'version')}`, ...lines];
}

/** One line per event. */
export function eventText(event: VmEventRecord, output: Output): string {
  const said = event.progress === undefined ? printable(event.text, 1_000) : progressText(event.progress);
  const paint = event.kind === 'warning' ? (text: string) => output.paint('yellow', text) : (text: string) => text;
  return paint(`${isoTime(event.atMs)} ${event.seq} ${printable(event.vm)} ${event.state} ${event.kind}: ${said}`);
}
