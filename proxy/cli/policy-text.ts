// A VM's policy as a table for people: each key as files write it, its value, and where it comes from. Pure.
import { printable } from '../../src/base/printable.ts';
import { POLICY_KEYS, type Policy, type PolicyOrigin } from '../../src/model/policy.ts';
import { shortDuration } from '../duration.ts';
import { wordOfKey } from '../policy-words.ts';
import type { PolicyView } from '../service.ts';
import type { Output } from './output.ts';
import { renderTable } from './table.ts';

/** The page of `vm policy`. */
export function policyText(view: PolicyView, output: Output): string {
  const head = ['KEY', 'VALUE', 'FROM'].map((title) => ({ title }));
  const rows = POLICY_KEYS.map((key) => {
    const origin = view.from[key];
    const paint = (text: string) => (origin === 'built-in' ? output.paint('dim', text) : text);
    return [wordOfKey(key), { text: valueText(view.policy[key]), paint }, { text: originText(origin, view), paint }];
  });
  const table = renderTable(head, rows, { columns: output.columns, ifEmpty: '' });
  const group = view.group === null ? 'in no group' : `in the group ${printable(view.group)}`;
  const trouble =
    view.trouble === null ? [] : [`It does not hold, so the VM stays gated: ${printable(view.trouble, 400)}`];
  return [`${printable(view.vm)}, ${group}`, '', table, ...trouble].join('\n');
}

function valueText(value: Policy[keyof Policy]): string {
  if (typeof value === 'number') return shortDuration(value);
  if (typeof value === 'object') return value.length === 0 ? '[]' : value.join(', ');
  return String(value);
}

function originText(origin: PolicyOrigin, { group }: PolicyView): string {
  switch (origin) {
    case 'vm':
      return 'this VM';
    case 'group':
      return `group ${printable(group ?? '')}`;
    case 'default':
      return 'the default';
    case 'built-in':
      return 'built in';
    default:
      return origin satisfies never;
  }
}
