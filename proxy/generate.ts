// Writes the files that are generated from the schemas of the surfaces: `node proxy/generate.ts`. Tests compare them.
import { fileURLToPath } from 'node:url';
import { systemClock } from '../src/base/clock.ts';
import { writeDurably } from '../src/base/durable-file.ts';
import { silentLog } from '../src/base/log.ts';
import { runCommand } from '../src/base/run-command.ts';
import { makeApiClient } from './api-client.ts';
import { configJsonSchema } from './config-schema.ts';
import { makeHttpApi, openApiText } from './http-api.ts';

const pathOf = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));

/** Writes docs/openapi.json and proxy/pratique.schema.json, formatted like everything else. */
export async function generateSurfaceFiles(): Promise<void> {
  // The document does not depend on the service; a client of nobody stands in for it.
  const service = makeApiClient({ socketPath: '/nonexistent', clock: systemClock });
  const api = await makeHttpApi({ service, log: silentLog, clock: systemClock });
  const files = [
    { path: pathOf('../docs/openapi.json'), text: await openApiText(api) },
    { path: pathOf('./pratique.schema.json'), text: configJsonSchema() },
  ];
  await api.close();
  for (const { path, text } of files) await writeDurably(path, text, 0o644);
  // The name of Node's architecture is the one of the package.
  const biome = pathOf(`../node_modules/@biomejs/cli-linux-${process.arch}/biome`);
  await runCommand([biome, 'format', '--write', ...files.map(({ path }) => path)]);
}

if (import.meta.main) await generateSurfaceFiles();
