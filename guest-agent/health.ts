// The health checks of a VM's policy: tried until they pass or their time is up, before the machine is plugged in.
import { AGENT_HEALTH_LOOK_MS, AGENT_HEALTH_TRY_MS, FREE_TEXT_CHARS_MAX } from '../src/base/limits.ts';
import { printable } from '../src/base/printable.ts';
import type { HealthResult } from '../src/model/health.ts';
import { runOwnCheck } from './installers/bundle.ts';
import { findServiceFault } from './installers/service-starts.ts';
import type { Paths } from './paths.ts';
import { AgentError, type Platform } from './platform/platform.ts';

/** One answer for each check, in their order. Each is tried at least once, and again while there is time and it fails. */
export async function checkHealth(
  platform: Platform,
  paths: Paths,
  { checks, timeoutMs }: { readonly checks: readonly string[]; readonly timeoutMs: number },
): Promise<HealthResult[]> {
  const endMs = platform.clock.monotonicMs() + timeoutMs;
  return await Promise.all(
    checks.map(async (check): Promise<HealthResult> => {
      const fault = await tryUntil(platform, endMs, () => findFault(platform, paths, check));
      if (fault === null) return { check, isHealthy: true };
      return { check, isHealthy: false, detail: printable(fault, FREE_TEXT_CHARS_MAX) };
    }),
  );
}

async function tryUntil(
  { clock }: Platform,
  endMs: number,
  find: () => Promise<string | null>,
): Promise<string | null> {
  for (;;) {
    const fault = await find();
    if (fault === null || clock.monotonicMs() + AGENT_HEALTH_LOOK_MS >= endMs) return fault;
    await clock.sleep(AGENT_HEALTH_LOOK_MS);
  }
}

/** Null, or what is wrong now. The host checked the words against their pattern, and the channel did so again. */
async function findFault(platform: Platform, paths: Paths, check: string): Promise<string | null> {
  const at = check.indexOf(':');
  const [kind, name] = [check.slice(0, at), check.slice(at + 1)];
  try {
    switch (kind) {
      case 'service':
        return await findServiceFault(platform, paths, name);
      case 'port': {
        const why = await platform.connectLoopback(Number(name));
        return why === null ? null : `nothing answers on loopback (${why})`;
      }
      case 'bundle':
        return await runOwnCheck({ platform, paths }, name, AGENT_HEALTH_TRY_MS);
      default:
        return 'this agent does not know such a check';
    }
  } catch (error) {
    if (error instanceof AgentError) return error.message;
    throw error;
  }
}
