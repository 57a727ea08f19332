// Builds a guest image by hand: sh scripts/run.sh images/main.ts tiny|debian|debian-systemd|debian-cloud --agent PATH [--kernel cloud|generic]
import { parseArgs } from 'node:util';
import { defaultCacheFolder } from '../src/base/cache-folder.ts';
import { classifyError, describeError, PratiqueError } from '../src/base/errors.ts';
import { makeLog } from '../src/base/log.ts';
import { ImageError } from './image-error.ts';
import { type AnyImage, buildImage } from './images.ts';

const USAGE = 'usage: images/main.ts tiny|debian|debian-systemd|debian-cloud --agent PATH [--kernel cloud|generic]';

async function run(argv: readonly string[]): Promise<AnyImage> {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: { agent: { type: 'string' }, kernel: { type: 'string', default: 'cloud' } },
  });
  const [name] = positionals;
  const flavour = values.kernel;
  if (name !== 'tiny' && name !== 'debian' && name !== 'debian-systemd' && name !== 'debian-cloud') {
    throw new ImageError('usage/image', USAGE);
  }
  if (flavour !== 'cloud' && flavour !== 'generic') throw new ImageError('usage/kernel', USAGE);
  if (values.agent === undefined) throw new ImageError('usage/agent', USAGE);
  return await buildImage({
    name,
    agentPath: values.agent,
    cacheFolder: defaultCacheFolder(),
    log: makeLog('info'),
    kernelFlavour: flavour,
    onProgress: (step) => process.stderr.write(`${name}: ${step}\n`),
  });
}

try {
  process.stdout.write(`${JSON.stringify(await run(process.argv.slice(2)), null, 2)}\n`);
} catch (error) {
  const isBug = !(error instanceof PratiqueError);
  process.stderr.write(`${isBug && error instanceof Error ? error.stack : describeError(error)}\n`);
  process.exitCode = classifyError(error).exitCode;
}
