// npm run bench -- NAME [--json]: runs one bench and prints its figures; progress goes to stderr.
import { inspect, parseArgs } from 'node:util';

type Bench = { readonly title: string; readonly run: (say: (line: string) => void) => Promise<object> };

const BENCHES: Readonly<Record<string, Bench>> = {
  gate: {
    title: 'agent start to plugged; drive released to link up with 100 VMs at once; 500 VMs on one daemon (needs root)',
    run: async (say) => await (await import('./gate.ts')).run(say),
  },
  drive: {
    title: 'building drives of 10 to 100,000 files; reading them beside a plain ISO file',
    run: async () => await (await import('./drive-build.ts')).run(),
  },
};

const USAGE = `usage: npm run bench -- NAME [--json]

${Object.entries(BENCHES)
  .map(([name, { title }]) => `  ${name.padEnd(8)}${title}`)
  .join('\n')}

  --json  one JSON document on stdout
`;

async function main(args: readonly string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: { json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } },
  });
  if (values.help === true) {
    process.stdout.write(USAGE);
    return 0;
  }
  const [name] = positionals;
  const bench = name !== undefined && Object.hasOwn(BENCHES, name) ? BENCHES[name] : undefined;
  if (bench === undefined || positionals.length !== 1) {
    process.stderr.write(USAGE);
    return 2;
  }
  const figures = await bench.run((line) => process.stderr.write(`${line}\n`));
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
