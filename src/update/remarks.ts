// What a VM goes without, and how old what is known of it is: the sentences for the timeline, `why` and the surfaces. Pure.
import { REMARKS_MAX } from '../base/limits.ts';
import { counted, printable } from '../base/printable.ts';
import type { EvidenceFacts } from '../model/evidence.ts';
import { productKey } from '../model/inventory.ts';
import type { Plan } from '../model/plan.ts';
import type { LeftOut } from '../model/release.ts';
import type { RunState } from './state.ts';

const HOUR_MS = 3_600_000;

type Left = Pick<LeftOut, 'version' | 'kind' | 'reason'> & { readonly item: string };

/** One version that is left out, in a sentence without a full stop. */
export function leftOutText({ item, version, kind, reason }: Left): string {
  return printable(`${item} ${version}${kind === 'security' ? ' (security)' : ''} is left out: ${reason}`, 400);
}

/** What the timeline says of a plan's left-outs: the first of them, and how many more there are. */
export function planNotes({
  vm,
  leftOut,
}: Plan): readonly { readonly kind: 'state' | 'warning'; readonly text: string }[] {
  const told = leftOut.slice(0, REMARKS_MAX).map((entry) => {
    const text = leftOutText({ ...entry, item: productKey(entry) });
    return { kind: entry.kind === 'security' ? ('warning' as const) : ('state' as const), text };
  });
  const more = leftOut.length - told.length;
  return more === 0 ? told : [...told, { kind: 'state', text: moreText(more, `pratique vm plan ${vm}`) }];
}

/** "vendor metadata 49 hours old (deb)", of what was not fresh when it was judged; null when all was. */
export function oldMetadataText({ vendors, judgedAtMs }: EvidenceFacts): string | null {
  const old = vendors.filter(({ fresh }) => !fresh);
  if (old.length === 0) return null;
  const hours = Math.round((judgedAtMs - Math.min(...old.map(({ checkedAtMs }) => checkedAtMs))) / HOUR_MS);
  const names = printable(old.map(({ vendor }) => vendor).join(', '), 200);
  return `vendor metadata ${counted(Math.max(hours, 1), 'hour')} old (${names})`;
}

/** What should be known of a VM that evidence has opened. */
export function remarksOf(state: RunState): readonly string[] {
  const evidence = openingEvidence(state);
  if (evidence === null) return [];
  const old = oldMetadataText(evidence);
  const leftOut = evidence.leftOut ?? [];
  const told = leftOut.slice(0, REMARKS_MAX).map(leftOutText);
  const more = leftOut.length - told.length;
  return [
    ...(old === null ? [] : [`It was plugged in on ${old}`]),
    ...told,
    ...(more === 0 ? [] : [moreText(more, `pratique vm plan ${evidence.vm}`)]),
  ];
}

function openingEvidence(state: RunState): EvidenceFacts | null {
  if (!('run' in state)) return null;
  const grant = state.kind === 'connected' ? state.grant : state.run.liveGrant;
  return grant?.kind === 'evidence' ? grant.evidence : null;
}

const moreText = (count: number, command: string): string => `${counted(count, 'more version')} left out: ${command}`;
