// Finds the virtio-serial port of the host by its name.
import { readLine } from './durable.ts';
import type { Paths } from './paths.ts';
import type { Platform } from './platform/platform.ts';
import { EMBEDDED } from './schemas.ts';

/** The device of the host's port; null while it is not there (the driver may come later). */
export function findHostPort(platform: Platform, paths: Paths): string | null {
  const { files } = platform;
  // udev's link, where there is a udev; the kernel's own list otherwise.
  const link = `${paths.dev}/virtio-ports/${EMBEDDED.portName}`;
  if (files.stat(link) !== null) return link;
  const folder = `${paths.sys}/class/virtio-ports`;
  const port = files
    .list(folder)
    .find((device) => readLine(platform, `${folder}/${device}/name`) === EMBEDDED.portName);
  if (port === undefined) return null;
  const device = `${paths.dev}/${port}`;
  return files.stat(device) === null ? null : device;
}
