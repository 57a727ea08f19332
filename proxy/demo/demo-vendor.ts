// The demonstration's vendor: a real TUF repository of the product `hello`, signed now and served over HTTP on loopback.
import { createReadStream } from 'node:fs';
import { mkdir, stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join, normalize } from 'node:path';
import { type HelloBehaviour, makeHelloBundle } from '../../images/hello-product.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { VendorConfig } from '../../src/vendor/registry.ts';
import { publishFolder } from '../../src/vendor/tuf/publish.ts';

export type DemoVendor = {
  readonly config: VendorConfig;
  readonly origin: string;
  readonly downloads: () => ReadonlyMap<string, number>;
  readonly close: () => Promise<void>;
};

/** Publishes one release of hello and serves it until closed. */
export async function startDemoVendor(options: {
  readonly folder: string;
  readonly version: string;
  readonly behaviour: HelloBehaviour;
  readonly clock: Clock;
  readonly license?: string;
}): Promise<DemoVendor> {
  const { folder, version, behaviour, clock, license } = options;
  const source = join(folder, 'release');
  const repository = join(folder, 'repository');
  await makeHelloBundle({ version, folder: source, behaviour, ...(license === undefined ? {} : { license }) });
  await mkdir(repository, { recursive: true });
  const publication = await publishFolder({
    source,
    repository,
    keys: join(folder, 'keys'),
    clock,
    compression: 'none',
  });
  const server = await serveFolder(repository);
  return {
    config: {
      kind: 'tuf',
      name: 'demo',
      metadataUrl: `${server.url}/metadata`,
      targetsUrl: `${server.url}/targets`,
      rootPath: publication.rootPath,
    },
    origin: server.url,
    downloads: () => server.downloads,
    close: server.close,
  };
}

/** A static web server on loopback that counts complete answers by path. */
async function serveFolder(
  folder: string,
): Promise<{ readonly url: string; readonly downloads: Map<string, number>; readonly close: () => Promise<void> }> {
  const downloads = new Map<string, number>();
  const server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url ?? '/', 'http://localhost').pathname));
    const file = join(folder, path);
    stat(file).then(
      (found) => {
        if (!found.isFile()) return void response.writeHead(404).end();
        downloads.set(path, (downloads.get(path) ?? 0) + 1);
        response.writeHead(200, { 'content-length': found.size });
        createReadStream(file).pipe(response);
      },
      () => void response.writeHead(404).end(),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo; // A TCP server that listens has an address of this form.
  return {
    url: `http://127.0.0.1:${port}`,
    downloads,
    close: async () => {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
