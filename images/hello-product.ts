// The demo product `hello`: a page with its version, seeded stale into the tiny image and offered newer as a bundle.
import { chmod, mkdir, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Kind } from '../src/model/release.ts';

export const HELLO_PRODUCT = 'hello';
export const HELLO_PREFIX = '/opt/hello';
/** The version that the tiny image has installed: stale on purpose. */
export const HELLO_SEEDED_VERSION = '1.0.0';

/** What the bundle does when the guest installs it. */
export const HELLO_BEHAVIOURS = ['ok', 'install-fails', 'check-fails', 'reboot'] as const;
export type HelloBehaviour = (typeof HELLO_BEHAVIOURS)[number];

export type HelloBundle = {
  /** A release folder as `pratique vendor publish` takes it: `release.json` beside `files/`. */
  readonly folder: string;
  readonly product: string;
  readonly version: string;
};

const PREPARE = `#!/bin/sh
# Prepares this version before it becomes the current one.
set -eu
cd "$(dirname "$0")/.."
version=$(cat www/version)
echo "<!doctype html><title>hello</title><h1>hello $version</h1>" >www/index.html
echo "hello $version: prepared"
`;

const REFUSE_INSTALL = `#!/bin/sh
echo "hello: this machine has no room for the new page" >&2
exit 1
`;

/** Busybox by its path: the Debian guest has no wget of its own. Its `wget -T` ends with a segmentation fault where its libc finds no shared libraries: hence `timeout`. */
const CHECK = `#!/bin/sh
# The running service must answer with this version. It may still be starting: 10 tries, half a second apart.
wanted=$(cat "$(dirname "$0")/../www/version")
tries=0
while [ $tries -lt 10 ]; do
  served=$(/bin/busybox timeout 2 /bin/busybox wget -q -O - http://127.0.0.1/version 2>/dev/null)
  if [ "$served" = "$wanted" ]; then
    echo "hello $wanted: served"
    exit 0
  fi
  tries=$((tries + 1))
  sleep 0.5
done
echo "hello: wanted $wanted, but the service answers '$served'" >&2
exit 1
`;

const REFUSE_CHECK = `#!/bin/sh
echo "hello: the service does not answer with the new version" >&2
exit 1
`;

/** Writes one release of hello, ready to be published, into a new folder. Throws the file system's error. */
export async function makeHelloBundle(options: {
  readonly version: string;
  readonly folder: string;
  readonly behaviour: HelloBehaviour;
  /** Why the release exists; security by default. */
  readonly kind?: Kind;
  /** The license that it is under; absent: none. */
  readonly license?: string;
}): Promise<HelloBundle> {
  const { version, folder, behaviour, license } = options;
  const files = join(folder, 'files');
  await writeHelloVersion(files, version);
  await writeProgram(join(files, 'bin/install'), behaviour === 'install-fails' ? REFUSE_INSTALL : PREPARE);
  await writeProgram(join(files, 'bin/check'), behaviour === 'check-fails' ? REFUSE_CHECK : CHECK);
  const entries = { install: 'bin/install', check: 'bin/check', timeoutMs: 60_000 };
  const reboot = behaviour === 'reboot' ? { reboot: true } : {};
  const install = { action: 'bundle', prefix: HELLO_PREFIX, compression: 'none', ...entries, ...reboot } as const;
  const under = license === undefined ? {} : { license };
  const description = { product: HELLO_PRODUCT, version, kind: options.kind ?? 'security', ...under, install };
  await writeFile(join(folder, 'release.json'), `${JSON.stringify(description, null, 2)}\n`);
  return { folder, product: HELLO_PRODUCT, version };
}

/** Installs the stale version into a guest's root folder as the agent would have: files, `current` link and record. */
export async function seedHello(root: string): Promise<void> {
  const prefix = join(root, HELLO_PREFIX);
  await writeHelloVersion(join(prefix, 'versions', HELLO_SEEDED_VERSION), HELLO_SEEDED_VERSION);
  await symlink(`versions/${HELLO_SEEDED_VERSION}`, join(prefix, 'current'));
  await mkdir(join(root, 'srv/www'), { recursive: true });
  await symlink(`${HELLO_PREFIX}/current/www/version`, join(root, 'srv/www/version'));
  await symlink(`${HELLO_PREFIX}/current/www/index.html`, join(root, 'srv/www/index.html'));
  const record = { product: HELLO_PRODUCT, version: HELLO_SEEDED_VERSION, prefix: HELLO_PREFIX, digest: null };
  const products = join(root, 'var/lib/pratique/products');
  await mkdir(products, { recursive: true });
  await writeFile(join(products, `${HELLO_PRODUCT}.json`), `${JSON.stringify(record)}\n`);
}

async function writeHelloVersion(folder: string, version: string): Promise<void> {
  await mkdir(join(folder, 'www'), { recursive: true });
  await writeFile(join(folder, 'www/version'), `${version}\n`);
}

async function writeProgram(path: string, content: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, content);
  await chmod(path, 0o755);
}
