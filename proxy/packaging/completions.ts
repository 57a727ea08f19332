// Completions for bash, zsh and fish, made from the command line itself. No shell asks the daemon for anything: a Tab must not wait.
import { type CommandNode, type CommandOption, everyNode } from './command-tree.ts';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

/** The completion script of a shell. */
export function completionScript(program: CommandNode, shell: Shell): string {
  switch (shell) {
    case 'bash':
      return bash(program);
    case 'zsh':
      return zsh(program);
    case 'fish':
      return fish(program);
    default:
      return shell satisfies never;
  }
}

/** What may follow a command: its verbs and the long forms of its options. */
function words(node: CommandNode): readonly string[] {
  return [...node.verbs.map(({ path }) => path.at(-1) ?? ''), ...node.options.map(longFlag)];
}

function longFlag({ flags }: CommandOption): string {
  return flags.at(-1) ?? '';
}

function bash(program: CommandNode): string {
  const name = program.path.join(' ');
  const nodes = [...everyNode(program)];
  const cases = nodes.map((node) => `    '${node.path.join(' ')}') words='${words(node).join(' ')}' ;;`);
  const choices = nodes.flatMap((node) =>
    node.options
      .filter((option) => option.choices.length > 0)
      .map((option) => `    '${node.path.join(' ')} ${longFlag(option)}') words='${option.choices.join(' ')}' ;;`),
  );
  const commands = nodes.map((node) => `'${node.path.join(' ')}'`).join('|');
  return `# bash completion for ${name}
_${name}() {
  local at='${name}' word words='' current="\${COMP_WORDS[COMP_CWORD]}" before="\${COMP_WORDS[COMP_CWORD-1]}" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="\${COMP_WORDS[i]}"
    case "$at $word" in
    ${commands}) at="$at $word" ;;
    esac
  done
  case "$at" in
${cases.join('\n')}
  esac
  case "$at $before" in
${choices.join('\n')}
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -o default -F _${name} ${name}
`;
}

function zsh(program: CommandNode): string {
  const name = program.path.join(' ');
  const cases = [...everyNode(program)].map((node) => {
    const verbs = node.verbs.map((verb) => zshWord(verb.path.at(-1) ?? '', verb.description));
    const options = node.options.map((option) => zshWord(longFlag(option), option.description));
    return `    '${node.path.join(' ')}') choices=(${[...verbs, ...options].join(' ')}) ;;`;
  });
  const commands = [...everyNode(program)].map((node) => `'${node.path.join(' ')}'`).join('|');
  return `#compdef ${name}
_${name}() {
  local at='${name}' word
  local -a choices
  for word in "\${words[@]:1:$((CURRENT - 2))}"; do
    case "$at $word" in
    ${commands}) at="$at $word" ;;
    esac
  done
  case "$at" in
${cases.join('\n')}
  esac
  _describe 'command' choices || _files
}
_${name} "$@"
`;
}

function zshWord(word: string, description: string): string {
  return quoted(`${word.replaceAll(':', '\\:')}:${oneLine(description)}`);
}

function fish(program: CommandNode): string {
  const name = program.path.join(' ');
  const lines = [...everyNode(program)].flatMap((node) => {
    const condition = fishCondition(node);
    const verbs = node.verbs.map(
      (verb) => `complete -c ${name} -f -n ${condition} -a ${verb.path.at(-1)} -d ${quoted(oneLine(verb.description))}`,
    );
    const options = node.options.map((option) => fishOption(name, condition, option));
    return [...verbs, ...options];
  });
  return `# fish completion for ${name}\n${lines.join('\n')}\n`;
}

/** After exactly this command, and none below it. */
function fishCondition(node: CommandNode): string {
  const seen = node.path.slice(1).map((word) => `__fish_seen_subcommand_from ${word}`);
  const below = node.verbs.map(({ path }) => path.at(-1)).join(' ');
  const notBelow = below === '' ? [] : [`not __fish_seen_subcommand_from ${below}`];
  const parts = [...seen, ...notBelow];
  return quoted(parts.length === 0 ? 'true' : parts.join('; and '));
}

function fishOption(name: string, condition: string, option: CommandOption): string {
  const long = longFlag(option).replace(/^--/, '');
  const value = option.value === null ? '' : ' -r';
  const choices = option.choices.length === 0 ? '' : ` -f -a ${quoted(option.choices.join(' '))}`;
  return `complete -c ${name} -n ${condition} -l ${long}${value}${choices} -d ${quoted(oneLine(option.description))}`;
}

function oneLine(text: string): string {
  return text.replace(/\s+/g, ' ');
}

/** A word of sh, zsh and fish between single quotes. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
