// The tiny image: busybox on a small ext4 disk, one demo product, seconds to boot.
import { chmod, copyFile, mkdir, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { runCommand } from '../src/base/run-command.ts';
import { unpackPackage } from './debian-package.ts';
import { installGuestSystem, writeExt4, writeInitrd } from './guest-system.ts';
import { seedHello } from './hello-product.ts';
import { unpackKernel } from './kernel.ts';
import type { DirectBootInputs, DirectBootRecipe } from './recipe.ts';

/** Room for the agent's state and a few versions of a small product, and quick to copy for each VM. */
const DISK_MIB = 64;

const OS_RELEASE = `ID=tiny
NAME="Pratique tiny guest"
PRETTY_NAME="Pratique tiny guest 1"
VERSION_ID="1"
`;

export const tinyRecipe: DirectBootRecipe = {
  name: 'tiny',
  boot: 'kernel',
  memoryMiB: 128,
  vmDisk: 'copy',
  packages: ['busybox-static'],
  build: buildTiny,
};

async function buildTiny(inputs: DirectBootInputs): Promise<void> {
  const { workFolder, outFolder } = inputs;
  inputs.report('unpacking kernel and busybox');
  const kernel = await unpackKernel(inputs.kernelPackage, join(workFolder, 'kernel'));
  const unpacked = join(workFolder, 'packages');
  for (const debianPackage of inputs.packages) await unpackPackage(debianPackage, unpacked);
  const busyboxPath = join(unpacked, 'bin/busybox');

  inputs.report('making the system disk');
  const root = join(workFolder, 'root');
  await makeBase(root, busyboxPath);
  await installGuestSystem({ root, kernel, agentPath: inputs.agentPath });
  await seedHello(root);
  await writeExt4({ root, path: join(outFolder, 'root.raw'), sizeMiB: DISK_MIB, owners: 'one' });
  await writeInitrd({ kernel, busyboxPath, path: join(outFolder, 'initrd') });
  await copyFile(kernel.image, join(outFolder, 'kernel'));
}

async function makeBase(root: string, busyboxPath: string): Promise<void> {
  for (const folder of ['bin', 'dev', 'etc', 'mnt', 'proc', 'root', 'run', 'sys', 'tmp', 'var/log', 'var/tmp']) {
    await mkdir(join(root, folder), { recursive: true });
  }
  await copyFile(busyboxPath, join(root, 'bin/busybox'));
  await chmod(join(root, 'bin/busybox'), 0o755);
  const applets = await runCommand([busyboxPath, '--list-full'], { purpose: 'listing the commands of busybox' });
  for (const applet of applets.split('\n').filter((path) => path !== '' && path !== 'bin/busybox')) {
    await mkdir(dirname(join(root, applet)), { recursive: true });
    await symlink('/bin/busybox', join(root, applet));
  }
  await writeFile(join(root, 'etc/os-release'), OS_RELEASE);
  await writeFile(join(root, 'etc/hostname'), 'tiny\n');
  await writeFile(join(root, 'etc/hosts'), '127.0.0.1 localhost\n');
  await writeFile(join(root, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\n');
  await writeFile(join(root, 'etc/group'), 'root:x:0:\n');
}
