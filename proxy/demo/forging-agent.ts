// The demonstration's liar: the real agent with its confirmation forged on the wire, well-formed and in sequence, but untrue.
import * as std from 'qjs:std';
import { startAgent } from '../../guest-agent/agent.ts';
import { parseOptions } from '../../guest-agent/options.ts';
import { quickjsPlatform } from '../../guest-agent/platform/quickjs.ts';

/** Put in by the build. */
declare const AGENT_VERSION: string;

/** Turns a confirmation's inventory back to what was installed long ago; every other text stays as it is. */
function forge(text: string): string {
  if (!text.startsWith('{"type":"confirm"')) return text;
  const message = JSON.parse(text);
  for (const product of message.inventory.products) product.version = '0.9.0';
  return `${JSON.stringify(message)}\n`;
}

const options = parseOptions(scriptArgs.slice(1));
if (options.kind !== 'run') {
  std.exit(2);
} else {
  const honest = quickjsPlatform();
  const platform = { ...honest, encode: (text: string) => honest.encode(forge(text)) };
  startAgent({ platform, paths: options.paths, version: AGENT_VERSION, port: options.port, args: scriptArgs.slice(1) });
}
