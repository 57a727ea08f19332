// npm run bench -- NAME [--json]: runs one bench and prints its figures; progress goes to stderr.
import { inspect, parseArgs } from 'node:util';

/** What only some benches know: `patch`, and the first two `drive` too. */
type Wishes = {
  readonly quick: boolean;
  readonly installPeers: boolean;
  readonly guests: number;
  readonly packages: readonly string[];
  readonly peers: readonly string[];
};

type Bench = {
  readonly title: string;
  readonly run: (say: (line: string) => void, wishes: Wishes) => Promise<object>;
};

const BENCHES: Readonly<Record<string, Bench>> = {
  gate: {
    title: 'agent start to plugged; drive released to link up with 100 VMs at once; 500 VMs on one daemon (needs root)',
    run: async (say) => await (await import('./gate.ts')).run(say),
  },
  index: {
    title:
      'Debian main verified, downloaded, unpacked, parsed and stored, beside `xz -dc`; memory; what the next VM costs',
    run: async (say) => await (await import('./package-index.ts')).run(say),
  },
  drive: {
    title:
      'reading a drive on the host and in a guest beside a plain file, qemu-nbd and nbdkit; building it (docs/bench-drive.md)',
    run: async (say, wishes) => await (await import('./drive.ts')).run(wishes, say),
  },
  patch: {
    title:
      'power-on to patched and on the network, beside virt-customize and apt-cacher-ng (needs root; docs/bench-patch.md)',
    run: async (say, wishes) => await (await import('./patch.ts')).run(wishes, say),
  },
};

const USAGE = `usage: npm run bench -- NAME [--json]

${Object.entries(BENCHES)
  .map(([name, { title }]) => `  ${name.padEnd(8)}${title}`)
  .join('\n')}

  --json           one JSON document on stdout

Of drive and patch:
  --quick          a smoke test: few rounds, small drives, no builds; one guest in each way
  --install-peers  install the peers' Debian packages first

Of patch:
  --guests N       guests in a row and side by side, 1 to 10; 10 by default
  --packages A,B   only these packages and what they need; everything that is pending by default
  --peers A,B      only these peers: virt-customize-online, virt-customize-local, apt-cacher-ng
`;

const OPTIONS = {
  json: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
  quick: { type: 'boolean' },
  guests: { type: 'string', default: '10' },
  packages: { type: 'string', default: '' },
  peers: { type: 'string', default: 'virt-customize-online,virt-customize-local,apt-cacher-ng' },
  'install-peers': { type: 'boolean' },
} as const;
const GUESTS_MAX = 10;

const wordsOf = (list: string): readonly string[] => list.split(',').filter((word) => word !== '');

async function main(args: readonly string[]): Promise<number> {
  const { values, positionals } = parseArgs({ args: [...args], allowPositionals: true, options: OPTIONS });
  if (values.help === true) {
    process.stdout.write(USAGE);
    return 0;
  }
  const [name] = positionals;
  const bench = name !== undefined && Object.hasOwn(BENCHES, name) ? BENCHES[name] : undefined;
  const guests = Number(values.guests);
  const isCount = Number.isInteger(guests) && guests >= 1 && guests <= GUESTS_MAX;
  if (bench === undefined || positionals.length !== 1 || !isCount) {
    process.stderr.write(USAGE);
    return 2;
  }
  const wishes = {
    quick: values.quick === true,
    installPeers: values['install-peers'] === true,
    guests,
    packages: wordsOf(values.packages),
    peers: wordsOf(values.peers),
  };
  const figures = await bench.run((line) => process.stderr.write(`${line}\n`), wishes);
  const shown =
    values.json === true ? JSON.stringify({ bench: name, ...figures }, null, 2) : inspect(figures, { depth: 6 });
  process.stdout.write(`${shown}\n`);
  return 0;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  const isUsage = error instanceof TypeError && 'code' in error && String(error.code).startsWith('ERR_PARSE_ARGS');
  process.stderr.write(isUsage ? `${error.message}\n\n${USAGE}` : `${inspect(error)}\n`);
  process.exitCode = isUsage ? 2 : 1;
}
