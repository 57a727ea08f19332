// Entry of the executable: reads the command line and starts the agent on QuickJS.
import * as std from 'qjs:std';
import { startAgent } from './agent.ts';
import { parseOptions, USAGE } from './options.ts';
import { quickjsPlatform } from './platform/quickjs.ts';

/** Put in by the build. */
declare const AGENT_VERSION: string;

function main(args: readonly string[]): void {
  const options = parseOptions(args);
  switch (options.kind) {
    case 'version':
      std.out.puts(`pratique-agent ${AGENT_VERSION}\n`);
      std.out.flush();
      return;
    case 'help':
      std.out.puts(USAGE);
      std.out.flush();
      return;
    case 'wrong':
      std.err.puts(`pratique-agent: ${options.why}\n${USAGE}`);
      std.err.flush();
      std.exit(2);
      return;
    case 'run':
      start(options.port, options.paths, args);
      return;
    default:
      options satisfies never;
  }
}

function start(port: string | null, paths: Parameters<typeof startAgent>[0]['paths'], args: readonly string[]): void {
  try {
    startAgent({ platform: quickjsPlatform(), paths, version: AGENT_VERSION, port, args });
  } catch (error) {
    std.err.puts(`pratique-agent: ${error instanceof Error ? error.message : error}\n`);
    std.err.flush();
    std.exit(1);
  }
}

main(scriptArgs.slice(1));
