// A VM's configuration for people: each item as a file would say it, with where it and its values come from. Pure.
import { stringify } from 'smol-toml';
import { printable, printableBlock } from '../../src/base/printable.ts';
import type { ConfigOrigin } from '../../src/model/guest-config.ts';
import type { VmConfigView } from '../service.ts';
import type { Output } from './output.ts';

/** Characters of one item that are shown; the JSON document has all. */
const ITEM_CHARS_MAX = 8_000;

type Item = VmConfigView['items'][number];

/** The page of `config show VM`. */
export function guestConfigText(view: VmConfigView, output: Output): string {
  const vm = printable(view.vm);
  if (!view.isConfigured) return `${vm} has no configuration.`;
  const blocks = view.items.map((item) => itemText(item, output));
  const empty = view.items.length === 0 ? ['# no items'] : [];
  const trouble = view.trouble.map((text) => output.paint('red', `# trouble: ${printable(text, 600)}`));
  const remarks = view.remarks.map((text) => output.paint('yellow', `# remark: ${printable(text, 600)}`));
  const gated = view.trouble.length === 0 ? [] : [`# ${vm} gets no plan, and stays gated, until this is mended.`];
  return [`# ${vm}`, ...empty, ...blocks, ...remarks, ...trouble, ...gated].join('\n');
}

function itemText(item: Item, output: Output): string {
  const { version, origin, values } = item;
  const lines = [
    `# ${originText(origin)}; version ${version}`,
    ...values.map((each) => `# ${each.name} = ${JSON.stringify(each.value)}  ${originText(each.origin)}`),
  ];
  const notes = lines.map((line) => output.paint('dim', printable(line, 600)));
  return [
    '',
    ...notes,
    printableBlock(stringify({ items: { [item.item]: asFile(item) } }).trim(), ITEM_CHARS_MAX),
  ].join('\n');
}

/** As a file has it: the fields of a file item stand in the item's own table. */
function asFile({ setting, apply, health }: Item): Record<string, unknown> {
  const { kind, ...fields } = setting;
  const own = setting.kind === 'file' ? setting.file : fields;
  return { kind, ...own, ...(apply === undefined ? {} : { apply }), ...(health === undefined ? {} : { health }) };
}

function originText({ source, at, layer }: ConfigOrigin): string {
  return source === 'server' ? `from the server, ${at}` : `from ${layer}, ${at}`;
}
