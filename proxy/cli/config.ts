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
    const from = files.length === 0 ? '# no file: defaults only' : files.map((file) => `# from ${file}`).join('\n');
    output.show({ files, config: inForce }, () => `${from}\n${stringify(inForce)}`.trimEnd());
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
