// pratique config …: the configuration of this host.
import type { Command } from 'commander';
import { type Build, completeCommand } from './context.ts';

/** Adds `pratique config` and its verbs. */
export function addConfigCommands(program: Command, build: Build): void {
  const config = program.command('config').description("the host's configuration");
  const show = config.command('show').description('the configuration in force, defaults included, as TOML');
  completeCommand(show, build, 'pratique config show', async ({ output, loadConfig }) => {
    const { config: inForce, files } = await loadConfig();
    const { stringify } = await import('smol-toml');
    const { fileOfPolicy } = await import('../policy-words.ts');
    const from = files.length === 0 ? '# no file: defaults only' : files.map((file) => `# from ${file}`).join('\n');
    // The text is a file that says the same; the document has what the program works with.
    const { policy, policyOfFiles: _said, groups, ...rest } = inForce;
    const asFile = {
      ...rest,
      policy: fileOfPolicy(policy),
      groups: Object.fromEntries(
        Object.entries(groups).map(([name, group]) => [name, { ...group, policy: fileOfPolicy(group.policy) }]),
      ),
    };
    output.show({ files, config: inForce }, () => `${from}\n${stringify(asFile)}`.trimEnd());
    return undefined;
  });
  const check = config.command('check').description('check the files without starting anything');
  completeCommand(check, build, 'pratique config check --config ./pratique.toml', async ({ output, loadConfig }) => {
    const { files } = await loadConfig();
    output.show({ ok: true, files }, () =>
      files.length === 0 ? 'No files; the defaults hold.' : `Correct: ${files.join(', ')}`,
    );
    return undefined;
  });
}
