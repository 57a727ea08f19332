// A liar for tests: the real agent, which says on the wire that what failed was installed, at the version that the host wants.
import * as std from 'qjs:std';
import { startAgent } from '../../guest-agent/agent.ts';
import { parseOptions } from '../../guest-agent/options.ts';
import { quickjsPlatform } from '../../guest-agent/platform/quickjs.ts';

/** Put in by the build. */
declare const AGENT_VERSION: string;

/** What the host of the test publishes. */
const WANTED = { product: 'hello', version: '1.1.1' };

function lie(text: string): string {
  const isReport = text.startsWith('{"type":"installed"') || text.startsWith('{"type":"confirm"');
  if (!isReport) return text;
  const message = JSON.parse(text);
  for (const result of message.results) {
    result.outcome = 'installed';
    result.checkPassed = true;
    delete result.code;
    delete result.output;
  }
  for (const product of message.inventory?.products ?? [])
    if (product.product === WANTED.product) product.version = WANTED.version;
  return `${JSON.stringify(message)}\n`;
}

const options = parseOptions(scriptArgs.slice(1));
if (options.kind !== 'run') {
  std.exit(2);
} else {
  const honest = quickjsPlatform();
  const platform = { ...honest, encode: (text: string) => honest.encode(lie(text)) };
  startAgent({ platform, paths: options.paths, version: AGENT_VERSION, port: options.port, args: scriptArgs.slice(1) });
}
