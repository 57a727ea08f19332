// pratique vendor …: where updates come from.
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import { isoTime } from '../../src/base/clock.ts';
import { ERROR_FAMILIES, PratiqueError } from '../../src/base/errors.ts';
import type { VendorConfig } from '../service.ts';
import { type Build, completeCommand } from './context.ts';
import type { Output } from './output.ts';
import { addPublishCommands } from './publish.ts';
import { renderTable } from './table.ts';

type AddOptions = {
  readonly kind: VendorConfig['kind'];
  readonly metadataUrl?: string;
  readonly targetsUrl?: string;
  readonly mirror?: readonly string[];
  readonly root?: string;
  readonly suite?: readonly string[];
  readonly url?: string;
  readonly keyring?: string;
};
type Row = {
  readonly vendor: string;
  readonly kind?: string;
  readonly checkedAtMs: number | null;
  readonly isFresh: boolean;
  readonly trouble: { readonly code: string; readonly message: string } | null;
};

/** Adds `pratique vendor` and its verbs. */
export function addVendorCommands(program: Command, build: Build): void {
  const vendor = program.command('vendor').description('sources of updates');
  addAdd(vendor, build);
  addReading(vendor, build);
  addPublishCommands(vendor, build);
}

function addAdd(vendor: Command, build: Build): void {
  const command = vendor
    .command('add')
    .description('add a source of updates')
    .argument('<name>')
    .addOption(new Option('--kind <kind>', 'kind of source').choices(['tuf', 'debian-apt']).makeOptionMandatory())
    .option('--metadata-url <url>', 'tuf: folder of the signed metadata')
    .option('--targets-url <url>', 'tuf: folder of the bundles')
    .option('--mirror <url...>', 'tuf: other places of the repository, folders that hold metadata/ and targets/')
    .option('--root <file>', 'tuf: the first trusted root.json')
    .option('--suite <name...>', 'debian-apt: suites, for example bookworm bookworm-security')
    .option('--url <url>', "debian-apt: archive instead of the host's own")
    .option('--keyring <file>', 'debian-apt: keyring that signs the archive');
  const example = 'pratique vendor add shop --kind tuf --metadata-url URL --targets-url URL --root root.json';
  completeCommand<AddOptions>(command, build, example, async ({ output, connect }, [name = ''], options) => {
    const status = await (await connect()).addVendor(vendorConfig(name, options));
    output.done(status, `vendor ${status.vendor} is added; ask it with: pratique vendor check ${status.vendor}`);
    return undefined;
  });
}

function vendorConfig(name: string, options: AddOptions): VendorConfig {
  if (options.kind === 'tuf') {
    return {
      kind: 'tuf',
      name,
      metadataUrl: needed(options.metadataUrl, '--metadata-url'),
      targetsUrl: needed(options.targetsUrl, '--targets-url'),
      ...(options.mirror === undefined ? {} : { mirrors: options.mirror.map(mirrorAt) }),
      rootPath: resolve(needed(options.root, '--root')),
    };
  }
  return {
    kind: 'debian-apt',
    name,
    suites: needed(options.suite, '--suite'),
    ...(options.url === undefined ? {} : { url: options.url }),
    ...(options.keyring === undefined ? {} : { keyring: resolve(options.keyring) }),
  };
}

/** A copy of what `vendor publish` makes, served as it is. */
function mirrorAt(url: string): { readonly metadataUrl: string; readonly targetsUrl: string } {
  const folder = url.replace(/\/+$/, '');
  return { metadataUrl: `${folder}/metadata`, targetsUrl: `${folder}/targets` };
}

function needed<T>(value: T | undefined, option: string): T {
  if (value !== undefined) return value;
  throw new PratiqueError('usage/command-line', `this kind of vendor needs ${option}`, {
    next: 'see `pratique vendor add --help`',
  });
}

function addReading(vendor: Command, build: Build): void {
  const list = vendor
    .command('list')
    .description('the sources and their state; with a name, what that one offers')
    .argument('[vendor]');
  completeCommand(list, build, 'pratique vendor list', async ({ output, connect }, [name]) => {
    const service = await connect();
    if (name === undefined) {
      const vendors = await service.listVendors();
      output.show({ vendors }, () => vendorText(vendors, output));
      return undefined;
    }
    const releases = await service.vendorOffers(name);
    const head = ['PRODUCT', 'VERSION', 'KIND', 'ADVISORIES', 'SUMMARY'].map((title) => ({ title }));
    output.show({ releases }, () =>
      renderTable(
        head,
        releases.map((each) => [each.product, each.version, each.kind, each.advisories.join(' '), each.summary ?? '']),
        { columns: output.columns, ifEmpty: 'This vendor offers nothing.' },
      ),
    );
    return undefined;
  });
  const check = vendor
    .command('check')
    .description('ask one source, or all, for news now; exit code 6 when one is ill')
    .argument('[vendor]');
  completeCommand(check, build, 'pratique vendor check', async ({ output, connect }, [name]) => {
    const vendors = await (await connect()).checkVendor(name ?? null);
    output.show({ vendors }, () => vendorText(vendors, output));
    return vendors.some(({ trouble }) => trouble !== null) ? ERROR_FAMILIES['vendor-ill'].exitCode : undefined;
  });
}

function vendorText(vendors: readonly Row[], output: Output): string {
  const hasKinds = vendors.some(({ kind }) => kind !== undefined);
  const head = ['VENDOR', ...(hasKinds ? ['KIND'] : []), 'FRESH', 'CHECKED', 'TROUBLE'].map((title) => ({ title }));
  const rows = vendors.map(({ vendor, kind, checkedAtMs, isFresh, trouble }) => [
    vendor,
    ...(hasKinds ? [kind ?? ''] : []),
    { text: isFresh ? 'yes' : 'no', paint: (text: string) => output.paint(isFresh ? 'green' : 'yellow', text) },
    checkedAtMs === null ? 'never' : isoTime(checkedAtMs),
    trouble === null ? '' : `${trouble.code}: ${trouble.message}`,
  ]);
  return renderTable(head, rows, { columns: output.columns, ifEmpty: 'No vendors. Add one with: pratique vendor add' });
}
