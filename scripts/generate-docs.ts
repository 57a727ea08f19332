// Writes the pages of docs/ that are generated from the code: `npm run docs`. A test beside each renderer holds page and code together.
import { writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { generateSurfaceFiles } from '../proxy/generate.ts';
import { renderProtocolPage } from '../src/guest/protocol-page.ts';
import { writeStateDiagram } from './state-diagram.ts';

/** Each generated page, by its path from the root of the checkout. */
const PAGES: readonly { readonly path: string; readonly render: () => string }[] = [
  { path: 'docs/agent-protocol.md', render: renderProtocolPage },
];

writeStateDiagram();
await generateSurfaceFiles();
for (const { path, render } of PAGES) {
  await writeFile(fileURLToPath(new URL(`../${path}`, import.meta.url)), render());
  process.stderr.write(`${path} written\n`);
}
