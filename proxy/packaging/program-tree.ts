// The tree of the program as it is built for the command line, without running anything.
import { buildProgram } from '../cli/program.ts';
import { type CommandNode, commandTree } from './command-tree.ts';

/** Every command of `pratique`. */
export function pratiqueProgram(): CommandNode {
  const program = buildProgram({
    surroundings: {
      stdout: process.stdout,
      stderr: process.stderr,
      env: {},
      uid: 0,
      interrupted: () => new AbortController().signal,
    },
    finish: () => {},
  });
  return commandTree(program);
}
