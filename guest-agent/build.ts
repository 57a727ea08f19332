// Builds the agent: TypeScript to QuickJS bytecode to one static executable. Runnable; every result is cached by its inputs.
import { readFileSync } from 'node:fs';
import { chmod, copyFile, mkdir, mkdtemp, rename, rm, stat, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Plugin } from 'esbuild';
import { defaultCacheFolder } from '../src/base/cache-folder.ts';
import { digestOf, digestOfFile } from '../src/base/digest.ts';
import type { Digest } from '../src/base/digest-text.ts';
import { syncFolder } from '../src/base/durable-file.ts';
import { describeError, PratiqueError } from '../src/base/errors.ts';
import { AGENT_BUILD_TIMEOUT_MS, AGENT_MEMORY_BYTES_MAX } from '../src/base/limits.ts';
import { type Log, makeLog } from '../src/base/log.ts';
import { runCommand, tryCommand } from '../src/base/run-command.ts';
import { EMBEDDED } from './schemas.ts';

export type AgentBuild = {
  /** The executable, in the cache: copy it, do not change it. */
  readonly path: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly version: string;
};

export type AgentBuildOptions = {
  /** Default: that of base/cache-folder.ts. */
  readonly cacheFolder?: string;
  readonly log: Log;
  /** Version the executable reports; default: that of package.json. Tests of the agent's own update need two. */
  readonly version?: string;
  /** Another entry than main.ts: the demonstration's lying agent. */
  readonly entry?: string;
};

export class AgentBuildError extends PratiqueError {}

const HERE = dirname(fileURLToPath(import.meta.url));
const MAIN_ENTRY = join(HERE, 'main.ts');
/** A package brings its agents built, by the names of their entries: it has neither their sources nor a compiler. */
const BUILT_FOLDER = join(HERE, '..', 'built-agents');

/** QuickJS as Debian distributes it. */
const QUICKJS_VERSION = '2025.04.26';
const QUICKJS_FILE = `quickjs_${QUICKJS_VERSION}.orig.tar.xz`;
const QUICKJS_POOL_PATH = `pool/main/q/quickjs/${QUICKJS_FILE}`;
const QUICKJS_SHA256 = 'ec81da5b3249ed648dbc7df4a1654988910e66a118d9b71cb63534216efcfbbe';

const LIBRARY = ['quickjs', 'libregexp', 'libunicode', 'cutils', 'quickjs-libc', 'dtoa'] as const;
const DEFINES = ['-D_GNU_SOURCE', `-DCONFIG_VERSION="${QUICKJS_VERSION}"`, '-fwrapv', '-w'] as const;
const TARGET_FLAGS = ['-Os', '-ffunction-sections', '-fdata-sections', '-fno-asynchronous-unwind-tables'] as const;
const NATIVE_FLAGS = ['-O2', '-Wall', '-Wextra', '-Wno-unused-parameter', '-Werror'] as const;
const LINK_FLAGS = ['-static', '-Wl,--gc-sections', '-Wl,-z,noexecstack'] as const;

/** Where a package has the agent of an entry, below the folder that holds its code. */
export function builtAgentPath(entry: string = MAIN_ENTRY): string {
  return join(BUILT_FOLDER, basename(entry, '.ts'));
}

/** Builds the agent, or finds it: in an installed package, or in the cache. Throws AgentBuildError that says what is missing. */
export async function buildAgent(options: AgentBuildOptions): Promise<AgentBuild> {
  const { log } = options;
  const built = builtAgentPath(options.entry);
  if (options.version === undefined && (await exists(built))) return await describe(built, packageVersion());
  const cache = join(options.cacheFolder ?? defaultCacheFolder(), 'agent');
  const version = options.version ?? packageVersion();
  const script = await bundle(version, options.entry ?? MAIN_ENTRY);
  const native = readFileSync(join(HERE, 'native.c'), 'utf8');
  const flags = [
    QUICKJS_SHA256,
    process.arch,
    String(AGENT_MEMORY_BYTES_MAX),
    ...nativeFlags(),
    ...LINK_FLAGS,
    ...TARGET_FLAGS,
  ];
  const key = digestOf([script, native, ...flags].join('\0')).slice(0, 32);
  const path = join(cache, `agent-${key}`, 'pratique-agent');
  if (!(await exists(path))) {
    await checkTools();
    const quickjs = await buildQuickjs(cache, log);
    log.info({ version }, 'building the guest agent');
    await makeOnce(cache, `agent-${key}`, (folder) => buildExecutable({ folder, quickjs, script }));
  }
  return await describe(path, version);
}

async function describe(path: string, version: string): Promise<AgentBuild> {
  const { size } = await stat(path);
  return { path, digest: await digestOfFile(path), sizeBytes: size, version };
}

function packageVersion(): string {
  const text = readFileSync(join(HERE, '..', 'package.json'), 'utf8');
  // The cast holds for every package.json.
  return (JSON.parse(text) as { readonly version: string }).version;
}

function nativeFlags(): readonly string[] {
  return [
    ...DEFINES.filter((flag) => flag !== '-w'),
    ...NATIVE_FLAGS,
    `-DAGENT_MEMORY_BYTES_MAX=${AGENT_MEMORY_BYTES_MAX}`,
  ];
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}

/** Makes a folder of the cache under another name and gives it its own when it is complete; whoever is first wins. */
async function makeOnce(cache: string, name: string, make: (folder: string) => Promise<void>): Promise<string> {
  const path = join(cache, name);
  if (await exists(path)) return path;
  await mkdir(cache, { recursive: true });
  const temporary = await mkdtemp(join(cache, `.${name}-`));
  try {
    await make(temporary);
    await chmod(temporary, 0o755);
    await rename(temporary, path).catch(async (error: unknown) => {
      // Another builder was faster: its result has the same inputs.
      if (!(await exists(path))) throw error;
    });
    await syncFolder(cache);
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
  return path;
}

// ---- The script ------------------------------------------------------------------------------------------------------

/** Replaces schemas.ts, which needs typebox, by the JSON it evaluates to; and takes QuickJS' modules from outside. */
const forQuickjs: Plugin = {
  name: 'for-quickjs',
  setup: (context) => {
    context.onResolve({ filter: /^qjs:/ }, ({ path }) => ({ path: path.slice('qjs:'.length), external: true }));
    context.onLoad({ filter: /guest-agent\/schemas\.ts$/ }, () => ({
      contents: `export const EMBEDDED = ${JSON.stringify(EMBEDDED)};`,
      loader: 'js',
    }));
    context.onLoad({ filter: /node_modules/ }, ({ path }) => {
      throw new AgentBuildError('internal/agent-imports', `the agent must not carry ${path}`);
    });
  },
};

async function bundle(version: string, entry: string): Promise<string> {
  // Loaded here, because an installed package is without it.
  const { build } = await import('esbuild');
  const result = await build({
    entryPoints: [entry],
    bundle: true,
    write: false,
    format: 'esm',
    platform: 'neutral',
    target: 'es2022',
    minify: true,
    define: { AGENT_VERSION: JSON.stringify(version) },
    plugins: [forQuickjs],
    logLevel: 'silent',
  });
  const [output] = result.outputFiles;
  if (output === undefined) throw new AgentBuildError('internal/agent-bundle', 'esbuild made no bundle of the agent');
  return output.text;
}

// ---- QuickJS ---------------------------------------------------------------------------------------------------------

async function checkTools(): Promise<void> {
  const tools = { gcc: 'gcc', 'musl-gcc': 'musl-tools', ar: 'binutils', strip: 'binutils', tar: 'tar', xz: 'xz-utils' };
  const missing: string[] = [];
  for (const [tool, debianPackage] of Object.entries(tools)) {
    const result = await tryCommand(['sh', '-c', 'command -v "$0"', tool], { purpose: `looking for ${tool}` });
    if (result.exitCode !== 0) missing.push(debianPackage);
  }
  if (missing.length === 0) return;
  const names = [...new Set(missing)].join(' ');
  throw new AgentBuildError('host-unfit/build-tools', 'the guest agent cannot be built: tools are missing', {
    next: `install them as root: apt-get install -y ${names}`,
  });
}

/** QuickJS built twice: its compiler for this machine, its library for the agent. Cached apart, because it takes longest. */
async function buildQuickjs(cache: string, log: Log): Promise<string> {
  const compilers = await Promise.all(
    ['gcc', 'musl-gcc'].map((compiler) =>
      runCommand([compiler, '--version'], { purpose: `asking ${compiler} for its version` }),
    ),
  );
  const inputs = [QUICKJS_SHA256, process.arch, ...DEFINES, ...TARGET_FLAGS, ...compilers];
  const key = digestOf(inputs.join('\0')).slice(0, 32);
  return await makeOnce(cache, `quickjs-${key}`, async (folder) => {
    const archive = await fetchQuickjs(cache, log);
    log.info('compiling QuickJS (once; about half a minute)');
    await runCommand(['tar', '-xJf', archive, '-C', folder, '--strip-components=1'], { purpose: 'unpacking QuickJS' });
    const host = LIBRARY.map((name) => ['gcc', '-O1', ...DEFINES, '-c', `${name}.c`, '-o', `host-${name}.o`]);
    const target = LIBRARY.map((name) => [
      'musl-gcc',
      ...TARGET_FLAGS,
      ...DEFINES,
      '-c',
      `${name}.c`,
      '-o',
      `${name}.o`,
    ]);
    await compileAll(folder, [...target, ...host]);
    const objects = LIBRARY.map((name) => `host-${name}.o`);
    const prefix = ['-DCONFIG_CC="gcc"', '-DCONFIG_PREFIX="/usr"'];
    await compile(folder, [
      'gcc',
      '-O1',
      ...DEFINES,
      ...prefix,
      'qjsc.c',
      ...objects,
      '-o',
      'qjsc',
      '-lm',
      '-ldl',
      '-lpthread',
    ]);
    await compile(folder, ['ar', 'rcs', 'libquickjs.a', ...LIBRARY.map((name) => `${name}.o`)]);
  });
}

async function compile(folder: string, argv: readonly string[]): Promise<void> {
  await runCommand(argv, { cwd: folder, purpose: 'building the guest agent', timeoutMs: AGENT_BUILD_TIMEOUT_MS });
}

/** Runs the commands, as many at once as there are processors. */
async function compileAll(folder: string, commands: readonly (readonly string[])[]): Promise<void> {
  const waiting = [...commands];
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await compile(folder, next);
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
}

/** The source, from the Debian mirror that this machine's own apt uses, by apt's own downloader (proxies included). */
async function fetchQuickjs(cache: string, log: Log): Promise<string> {
  const folder = await makeOnce(cache, `source-${QUICKJS_SHA256.slice(0, 32)}`, async (temporary) => {
    const target = join(temporary, QUICKJS_FILE);
    const mirrors = await listMirrors();
    log.info('fetching the QuickJS source from the Debian mirror');
    const trouble: string[] = [];
    for (const mirror of mirrors) {
      const argv = [
        '/usr/lib/apt/apt-helper',
        'download-file',
        `${mirror}/${QUICKJS_POOL_PATH}`,
        target,
        `SHA256:${QUICKJS_SHA256}`,
      ];
      const result = await tryCommand(argv, { purpose: 'fetching QuickJS', timeoutMs: AGENT_BUILD_TIMEOUT_MS });
      if (result.exitCode === 0 && (await digestOfFile(target)) === QUICKJS_SHA256) return;
      trouble.push(result.stderr.trim());
    }
    throw new AgentBuildError('vendor-ill/quickjs-source', `QuickJS could not be fetched: ${trouble.join('; ')}`, {
      next: 'check that apt-get update works on this machine',
    });
  });
  const path = join(folder, QUICKJS_FILE);
  if ((await digestOfFile(path)) === QUICKJS_SHA256) return path;
  throw new AgentBuildError('host-fault/cache-damaged', `${path} is damaged`, {
    next: `remove ${folder} and try again`,
  });
}

/** Debian mirrors of apt's configuration, those of the main archive first. */
async function listMirrors(): Promise<readonly string[]> {
  const format = '$(CREATED_BY)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)';
  const text = await runCommand(['apt-get', 'indextargets', '--format', format], { purpose: "reading apt's sources" });
  const rows = text.split('\n').map((line) => line.split('|'));
  const mains = rows.filter(([kind, component]) => kind === 'Packages' && component === 'main');
  const sorted = mains.sort(([, , a = ''], [, , b = '']) => Number(/-security/.test(a)) - Number(/-security/.test(b)));
  const mirrors = [...new Set(sorted.map(([, , , uri = '']) => uri.replace(/\/+$/, '')))].filter((uri) => uri !== '');
  if (mirrors.length > 0) return mirrors;
  throw new AgentBuildError('host-unfit/no-mirror', 'apt on this machine has no Debian source', {
    next: 'add a Debian source to apt and run apt-get update',
  });
}

// ---- The executable --------------------------------------------------------------------------------------------------

type ExecutableInputs = { readonly folder: string; readonly quickjs: string; readonly script: string };

async function buildExecutable({ folder, quickjs, script }: ExecutableInputs): Promise<void> {
  const work = join(folder, 'work');
  await mkdir(work);
  await writeFile(join(work, 'agent.js'), script);
  await copyFile(join(HERE, 'native.c'), join(work, 'native.c'));
  await compile(work, [join(quickjs, 'qjsc'), '-e', '-m', '-s', '-M', 'native,native', '-o', 'agent.c', 'agent.js']);
  await compile(work, ['musl-gcc', ...nativeFlags(), '-isystem', quickjs, '-c', 'native.c', '-o', 'native.o']);
  await compile(work, ['musl-gcc', ...TARGET_FLAGS, ...DEFINES, '-I', quickjs, '-c', 'agent.c', '-o', 'agent.o']);
  const inputs = ['agent.o', 'native.o', join(quickjs, 'libquickjs.a')];
  const output = join(folder, 'pratique-agent');
  await compile(work, ['musl-gcc', ...LINK_FLAGS, ...inputs, '-lm', '-lpthread', '-o', output]);
  await compile(work, ['strip', '--strip-all', '--remove-section=.comment', output]);
  await rm(work, { recursive: true });
}

if (import.meta.main) {
  try {
    const built = await buildAgent({ log: makeLog('info') });
    process.stdout.write(`${JSON.stringify(built)}\n`);
  } catch (error) {
    process.stderr.write(`pratique: ${describeError(error)}\n`);
    process.exitCode = error instanceof AgentBuildError && error.code.startsWith('host-unfit/') ? 3 : 1;
  }
}
