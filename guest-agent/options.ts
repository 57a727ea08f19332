// The agent's command line.
import { GUEST_PATHS, type Paths } from './paths.ts';

export const USAGE = `usage: pratique-agent [--port PATH] [--state DIR] [--runtime DIR] [--drive DIR]
Reports this machine's software to the hypervisor host and installs what the host offers.
  --port PATH     device or unix socket of the host's channel (default: the virtio-serial port found by name)
  --state DIR     durable state (default: ${GUEST_PATHS.state})
  --runtime DIR   state until the next boot (default: ${GUEST_PATHS.runtime})
  --drive DIR     a folder that stands for the mounted drive (default: found by its label and mounted)
  --version       print the version and end
  --help          print this and end
`;

export type Options =
  | { readonly kind: 'run'; readonly port: string | null; readonly paths: Paths }
  | { readonly kind: 'version' }
  | { readonly kind: 'help' }
  | { readonly kind: 'wrong'; readonly why: string };

const PATH_OPTIONS: readonly string[] = ['--port', '--state', '--runtime', '--drive'];

/** Parses the words after the program's name. */
export function parseOptions(args: readonly string[]): Options {
  const values = new Map<string, string>();
  for (let index = 0; index < args.length; index += 2) {
    const name = args[index] ?? '';
    const value = args[index + 1];
    if (name === '--version') return { kind: 'version' };
    if (name === '--help') return { kind: 'help' };
    if (!PATH_OPTIONS.includes(name)) return { kind: 'wrong', why: `${name} is no option` };
    if (value === undefined || !value.startsWith('/')) return { kind: 'wrong', why: `${name} needs an absolute path` };
    values.set(name, value.length > 1 ? value.replace(/\/+$/, '') : value);
  }
  const paths: Paths = {
    ...GUEST_PATHS,
    state: values.get('--state') ?? GUEST_PATHS.state,
    runtime: values.get('--runtime') ?? GUEST_PATHS.runtime,
    driveFolder: values.get('--drive') ?? null,
  };
  return { kind: 'run', port: values.get('--port') ?? null, paths };
}
