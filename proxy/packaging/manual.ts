// Manual pages in roff, made from the command line itself: one for the program, one for each noun.
import type { CommandNode, CommandOption } from './command-tree.ts';

export type ManualPage = { readonly name: string; readonly section: 1; readonly text: string };

export type ManualOptions = {
  readonly version: string;
  /** Day of the release, `2026-11-20`. */
  readonly day: string;
};

const FILES: readonly (readonly [string, string])[] = [
  ['/etc/pratique/pratique.toml', 'the configuration of the host; then conf.d/*.toml beside it'],
  ['/var/lib/pratique', 'database, blobs, audit records'],
  ['/run/pratique/pratique.sock', 'where the daemon answers'],
];

/** The pages of a program: `pratique`, then `pratique-vm` and so on. */
export function manualPages(program: CommandNode, exitCodes: string, options: ManualOptions): readonly ManualPage[] {
  const nouns = program.verbs.map((noun) => pageOf(noun, options, []));
  const seeAlso = nouns.map(({ name }) => name);
  return [pageOf(program, options, seeAlso, exitCodes), ...nouns];
}

function pageOf(
  node: CommandNode,
  { version, day }: ManualOptions,
  seeAlso: readonly string[],
  exitCodes?: string,
): ManualPage {
  const name = node.path.join('-');
  const lines = [
    `.TH ${name.toUpperCase()} 1 "${day}" "pratique ${version}" "Pratique"`,
    '.SH NAME',
    `${name} \\- ${roff(node.description)}`,
    '.SH SYNOPSIS',
    ...synopses(node),
    ...section('OPTIONS', node.options.flatMap(optionLines)),
    ...section('COMMANDS', node.verbs.flatMap(verbLines)),
    ...(exitCodes === undefined ? [] : section('EXIT STATUS', [roff(exitCodes)])),
    ...(exitCodes === undefined
      ? []
      : section(
          'FILES',
          FILES.flatMap(([path, what]) => ['.TP', `.I ${path}`, roff(what)]),
        )),
    ...section('SEE ALSO', [references(seeAlso.length > 0 ? seeAlso : ['pratique'])]),
  ];
  return { name, section: 1, text: `${lines.join('\n')}\n` };
}

function synopses(node: CommandNode): readonly string[] {
  const leaves = node.verbs.length === 0 ? [node] : node.verbs;
  return leaves.flatMap(({ path, operands, options }, index) => [
    ...(index === 0 ? [] : ['.br']),
    `.B ${roff(path.join(' '))}`,
    ...(options.length > 0 ? ['[\\fIoptions\\fR]'] : []),
    ...(operands.length > 0 ? [`\\fI${roff(operands.join(' '))}\\fR`] : []),
  ]);
}

function verbLines(node: CommandNode): readonly string[] {
  // A noun of the program has a page of its own.
  if (node.path.length === 2) return ['.TP', `.B ${roff(node.path.join(' '))}`, roff(node.description)];
  return [
    '.TP',
    `.B ${roff([...node.path.slice(1), ...node.operands].join(' '))}`,
    roff(node.description),
    ...(node.options.length === 0 ? [] : ['.RS', ...node.options.flatMap(optionLines), '.RE']),
    ...node.verbs.flatMap(verbLines),
  ];
}

function optionLines({ flags, value, choices, description }: CommandOption): readonly string[] {
  const words = flags.map((flag) => `\\fB${roff(flag)}\\fR`).join(', ');
  const named = value === null ? '' : ` \\fI${roff(value)}\\fR`;
  const among = choices.length === 0 ? '' : ` (${choices.join(', ')})`;
  return ['.TP', `${words}${named}`, roff(`${description}${among}`)];
}

function section(title: string, lines: readonly string[]): readonly string[] {
  return lines.length === 0 ? [] : [`.SH ${title.includes(' ') ? `"${title}"` : title}`, ...lines];
}

function references(names: readonly string[]): string {
  return names.map((name) => `\\fB${roff(name)}\\fR(1)`).join(', ');
}

/** Text as roff shows it: a line never begins a request, a hyphen is the one that can be copied. */
export function roff(text: string): string {
  const escaped = text.replaceAll('\\', '\\e').replaceAll('-', '\\-');
  return escaped
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '')
    .map((line) => (/^[.']/.test(line) ? `\\&${line}` : line))
    .join('\n');
}
