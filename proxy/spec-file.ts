// Reads a VM spec from a TOML or JSON file, or makes one for a VM that somebody else started; errors name file and field.
import { readFile, stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { PratiqueError } from '../src/base/errors.ts';
import { CONFIG_FILE_BYTES_MAX } from '../src/base/limits.ts';
import { parseJson } from '../src/base/parse.ts';
import { makeCheck, misfitText } from '../src/base/schema-check.ts';
import { parseToml } from '../src/base/toml-file.ts';
import { lineOfKey } from '../src/base/toml-lines.ts';
import { type VmSpec, VmSpecSchema } from '../src/hypervisor/vm-spec.ts';

export class SpecError extends PratiqueError {}

const NEXT = 'see docs/vm-spec.md for all fields';
const checkSpec = makeCheck(VmSpecSchema);

/** The spec in a file; NICs that name no bridge get the default one. Throws SpecError `usage/spec` naming file, line and field. */
export async function readVmSpec(path: string, defaultBridge: string): Promise<VmSpec> {
  const text = await readSpecText(path);
  const isJson = path.endsWith('.json');
  const value = isJson ? parseJson(text, path, 'usage/spec') : parseToml(text, path, SpecError);
  return checkedSpec(withBridges(value, defaultBridge), (place) => {
    return isJson ? path : `${path}:${lineOfKey(text, place)}`;
  });
}

export type AttachedOptions = {
  readonly qmp?: string;
  readonly channel?: string;
  /** `nic=tap`, one for each NIC. */
  readonly tap?: readonly string[];
  readonly drivePort?: string;
  /** Named network namespace (ip-netns(8)) in which the taps are; absent: the host's own network. */
  readonly netns?: string;
};

/** The spec of a running VM from the options of `vm add`. Throws SpecError `usage/spec`. */
export function attachedSpec(vm: string, options: AttachedOptions): VmSpec {
  if (options.qmp === undefined || options.channel === undefined || options.tap === undefined) {
    throw new SpecError('usage/spec', `VM ${vm}: a running VM needs --qmp, --channel and --tap`, {
      next: 'give all three, or a spec file instead of a name',
    });
  }
  const spec = {
    format: 'pratique.vm/1',
    kind: 'attached',
    vm,
    qmpSocket: resolve(options.qmp),
    channelSocket: resolve(options.channel),
    nics: options.tap.map((pair) => {
      const at = pair.indexOf('=');
      if (at > 0) return { id: pair.slice(0, at), tap: pair.slice(at + 1) };
      throw new SpecError('usage/spec', `--tap ${pair}: write it as NIC=TAP`, { next: 'for example --tap net0=tap7' });
    }),
    ...(options.drivePort === undefined ? {} : { drivePort: options.drivePort }),
    ...(options.netns === undefined ? {} : { namespace: { kind: 'named', name: options.netns } }),
  };
  return checkedSpec(spec, () => 'the options');
}

function checkedSpec(value: unknown, placeOf: (path: readonly (string | number)[]) => string): VmSpec {
  const found = checkSpec(value);
  if (found === null) return value as VmSpec; // The cast holds: the check against this schema has just passed.
  throw new SpecError('usage/spec', `${placeOf(found.path)}: ${misfitText(found)}`, { next: NEXT });
}

function withBridges(value: unknown, bridge: string): unknown {
  if (typeof value !== 'object' || value === null || !('nics' in value) || !Array.isArray(value.nics)) return value;
  if (!('kind' in value) || value.kind !== 'managed') return value;
  const nics = value.nics.map((nic: unknown) =>
    typeof nic === 'object' && nic !== null && !('bridge' in nic) ? { ...nic, bridge } : nic,
  );
  return { ...value, nics };
}

async function readSpecText(path: string): Promise<string> {
  const found = await stat(path).catch(() => null);
  if (found === null || !found.isFile()) {
    throw new SpecError('usage/spec', `${path}: there is no such file`, {
      next: 'give a spec file, or --qmp, --channel and --tap for a VM that runs already',
    });
  }
  if (found.size > CONFIG_FILE_BYTES_MAX) {
    throw new SpecError('usage/spec', `${path}: larger than ${CONFIG_FILE_BYTES_MAX} bytes`);
  }
  return await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new SpecError('usage/spec', `${path}: cannot be read`, { cause, next: 'check its permissions' });
  });
}
