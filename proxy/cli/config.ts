// pratique config …: the configuration of this host, and what it configures its guests with.
import type { Command } from 'commander';
import { ERROR_FAMILIES } from '../../src/base/errors.ts';
import { printable } from '../../src/base/printable.ts';
import type { CheckReport } from '../../src/guest-config/check.ts';
import type { Config, LoadedConfig } from '../config.ts';
import type { SignOptions } from './config-sign.ts';
import { type Build, type Context, completeCommand } from './context.ts';

/** Adds `pratique config` and its verbs. */
export function addConfigCommands(program: Command, build: Build): void {
  const config = program.command('config').description("the host's configuration, and what guests are configured with");
  const show = config
    .command('show')
    .description('the configuration in force, defaults included, as TOML; with a name, what that VM is configured with')
    .argument('[vm]', 'what this VM will get, secrets blanked, and where each value comes from');
  completeCommand(show, build, 'pratique config show web1', async (context, [vm]) => {
    await (vm === undefined ? showHost(context) : showVm(context, vm));
    return undefined;
  });
  const check = config.command('check').description('check the files, those of guests too, without starting anything');
  completeCommand(check, build, 'pratique config check --config ./pratique.toml', async ({ output, loadConfig }) => {
    const loaded = await loadConfig();
    const guests = await checkGuests(loaded.config);
    const isOk = guests.trouble.length === 0;
    output.show({ ok: isOk, files: loaded.files, guests }, () => checkText(loaded, guests));
    return isOk ? undefined : ERROR_FAMILIES.usage.exitCode;
  });
  const sign = config
    .command('sign')
    .description('sign the values and items of a file for one VM, as its configuration server serves them')
    .argument('<file>', 'TOML, YAML or JSON with the tables `values` and `items`')
    .requiredOption('--key <file>', 'ed25519 private key (PEM), mode 0600')
    .requiredOption('--vm <name>', 'the VM that the document is for')
    .requiredOption('--out <file>', 'where the signed document is written')
    .option('--expires <duration>', 'how long it is good for', '30d')
    .option('--serial <n>', 'greater than that of the document before; absent: the time in seconds');
  const example = 'pratique config sign web1.toml --vm web1 --key signing.pem --out web1.json';
  completeCommand<SignOptions>(sign, build, example, async (context, [file], options) => {
    const { signConfig } = await import('./config-sign.ts');
    await signConfig(context, file ?? '', options);
    return undefined;
  });
}

async function showHost({ output, loadConfig }: Context): Promise<void> {
  const { config: inForce, files } = await loadConfig();
  const { stringify } = await import('smol-toml');
  const { fileOfPolicy } = await import('../policy-words.ts');
  const { shortDuration } = await import('../duration.ts');
  const from = files.length === 0 ? '# no file: defaults only' : files.map((file) => `# from ${file}`).join('\n');
  // The text is a file that says the same; the document has what the program works with.
  const { policy, policyOfFiles: _said, groups, guestConfigServer, licenses, ...rest } = inForce;
  const asFile = {
    ...rest,
    policy: fileOfPolicy(policy),
    groups: Object.fromEntries(
      Object.entries(groups).map(([name, { policy: own, ...group }]) => [
        name,
        { ...group, policy: fileOfPolicy(own) },
      ]),
    ),
    licenses: {
      leaseDuration: shortDuration(licenses.durationMs),
      grace: shortDuration(licenses.graceMs),
      idleRelease: shortDuration(licenses.idleMs),
      poll: shortDuration(licenses.pollMs),
    },
    ...(guestConfigServer === undefined ? {} : { guestConfigServer: serverAsFile(guestConfigServer, shortDuration) }),
  };
  output.show({ files, config: inForce }, () => `${from}\n${stringify(asFile)}`.trimEnd());
}

function serverAsFile(
  { graceMs, ...rest }: NonNullable<Config['guestConfigServer']>,
  shortDuration: (ms: number) => string,
): Record<string, unknown> {
  return { ...rest, ...(graceMs === 0 ? {} : { grace: shortDuration(graceMs) }) };
}

async function showVm({ output, connect }: Context, vm: string): Promise<void> {
  const view = await (await connect()).vmConfig(vm);
  const { guestConfigText } = await import('./guest-config-text.ts');
  output.show(view, () => guestConfigText(view, output));
}

async function checkGuests(config: Config): Promise<CheckReport> {
  const { checkGuestConfig } = await import('../../src/guest-config/check.ts');
  const { groupByName } = await import('../vm-policy.ts');
  return await checkGuestConfig({
    folder: config.guestConfigFolder,
    groups: Object.keys(config.groups),
    groupOf: (vm) => groupByName(config.groups, vm),
    hasServer: config.guestConfigServer !== undefined,
  });
}

function checkText({ files }: LoadedConfig, { files: guestFiles, trouble, remarks }: CheckReport): string {
  const all = [...files, ...guestFiles];
  const verdict = all.length === 0 ? 'No files; the defaults hold.' : `Correct: ${all.join(', ')}`;
  const notes = remarks.map((text) => `remark: ${printable(text, 1_000)}`);
  return [...(trouble.length === 0 ? [verdict] : trouble.map((text) => printable(text, 1_000))), ...notes].join('\n');
}
