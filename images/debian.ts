// The Debian image in its small form: a real Debian at release level whose first program is busybox's init, not systemd.
import { chmod, copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { removeTree } from './cache.ts';
import { fetchDebianBase } from './debian-base.ts';
import { installGuestSystem, unpackBase, writeExt4, writeInitrd } from './guest-system.ts';
import { seedHello } from './hello-product.ts';
import { unpackKernel } from './kernel.ts';
import type { DirectBootInputs, DirectBootRecipe } from './recipe.ts';

/** Holes in the file on the host until the guest fills them: room for updates and their lists. */
const DISK_MIB = 1024;

/** Beside what the guest needs to start and to mount the drive: packages that have had security updates since the release. */
const INCLUDE = ['busybox-static', 'mount', 'jq', 'libexpat1', 'unzip', 'zip'];

/** What the guest has installed, asked over its network: http://GUEST/cgi-bin/versions */
const VERSIONS_PAGE = `#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
exec dpkg-query -W -f '\${Package} \${Version}\\n'
`;

export const debianRecipe: DirectBootRecipe = {
  name: 'debian',
  boot: 'kernel',
  memoryMiB: 512,
  vmDisk: 'overlay',
  packages: [],
  pinFurther: async ({ cacheFolder, log }) => {
    const { suite, digest, inRelease, packages } = await fetchDebianBase({ include: INCLUDE, cacheFolder, log });
    return { suite, base: digest, inRelease, basePackages: packages };
  },
  build: buildDebian,
};

async function buildDebian(inputs: DirectBootInputs): Promise<void> {
  const { workFolder, outFolder, cacheFolder, log } = inputs;
  inputs.report('unpacking kernel and base system');
  const kernel = await unpackKernel(inputs.kernelPackage, join(workFolder, 'kernel'));
  const base = await fetchDebianBase({ include: INCLUDE, cacheFolder, log });
  const root = join(workFolder, 'root');
  try {
    await unpackBase(base.path, root);
    inputs.report('making the system disk');
    await installGuestSystem({ root, kernel, agentPath: inputs.agentPath });
    await addDebianFiles(root);
    await seedHello(root);
    await writeExt4({ root, path: join(outFolder, 'root.raw'), sizeMiB: DISK_MIB, owners: 'all' });
    await writeInitrd({ kernel, busyboxPath: join(root, 'bin/busybox'), path: join(outFolder, 'initrd') });
  } finally {
    await removeTree(root);
  }
  await copyFile(kernel.image, join(outFolder, 'kernel'));
}

async function addDebianFiles(root: string): Promise<void> {
  const page = join(root, 'srv/www/cgi-bin/versions');
  await mkdir(join(root, 'srv/www/cgi-bin'), { recursive: true });
  await writeFile(page, VERSIONS_PAGE);
  await chmod(page, 0o755);
  await writeFile(join(root, 'etc/hostname'), 'debian\n');
  await writeFile(join(root, 'etc/hosts'), '127.0.0.1 localhost debian\n');
  await writeFile(join(root, 'etc/machine-id'), '');
}
