// The command line as data, read from the program itself: what manual pages and completions are made of.
import type { Argument, Option } from 'commander';

export type CommandOption = {
  /** As a person types them, the short one first: `-V`, `--version`. */
  readonly flags: readonly string[];
  /** The value's name, null for a switch. */
  readonly value: string | null;
  readonly choices: readonly string[];
  readonly description: string;
};

export type CommandNode = {
  /** From the program down: `['pratique', 'vm', 'add']`. */
  readonly path: readonly string[];
  readonly description: string;
  /** As in a synopsis: `<vm>`, `[file]`, `<name...>`. */
  readonly operands: readonly string[];
  readonly options: readonly CommandOption[];
  readonly verbs: readonly CommandNode[];
};

/** What is read of commander's Command. */
export type ReadableCommand<Self = unknown> = {
  readonly name: () => string;
  readonly description: () => string;
  readonly registeredArguments: readonly Argument[];
  readonly createHelp: () => {
    readonly visibleOptions: (command: Self) => readonly Option[];
    readonly visibleCommands: (command: Self) => readonly Self[];
  };
};

/** The tree of a program's commands; hidden ones are left out. */
export function commandTree<Self extends ReadableCommand<Self>>(
  command: Self,
  above: readonly string[] = [],
): CommandNode {
  const path = [...above, command.name()];
  const help = command.createHelp();
  return {
    path,
    description: command.description(),
    operands: command.registeredArguments.map((operand) => {
      const name = operand.variadic ? `${operand.name()}...` : operand.name();
      return operand.required ? `<${name}>` : `[${name}]`;
    }),
    options: help.visibleOptions(command).map(describeOption),
    verbs: help
      .visibleCommands(command)
      .filter((verb) => verb.name() !== 'help')
      .map((verb) => commandTree(verb, path)),
  };
}

function describeOption(option: Option): CommandOption {
  const flags = [option.short, option.long].filter((flag): flag is string => flag !== undefined && flag !== null);
  const value = /[<[]([^>\]]+)[>\]]/.exec(option.flags)?.[1] ?? null;
  return { flags, value, choices: option.argChoices ?? [], description: option.description };
}

/** Every node of a tree, from the top. */
export function* everyNode(node: CommandNode): Generator<CommandNode> {
  yield node;
  for (const verb of node.verbs) yield* everyNode(verb);
}
