// What the policy wants to work in a guest goes out with the question for its confirmation.
import type { HostBody } from '../guest/messages.ts';
import type { Inventory } from '../model/inventory.ts';
import type { Policy } from '../model/policy.ts';

/** The message with the policy's health checks, as it is now; unchanged for an agent that would refuse a field it does not know. */
export function withHealthChecks(
  body: HostBody,
  policy: Pick<Policy, 'health' | 'healthTimeoutMs'>,
  reported: Inventory | null,
): HostBody {
  const isAsked = body.type === 'ask-confirm' && policy.health.length > 0;
  if (!isAsked || reported?.abilities.healthChecks !== true) return body;
  return { ...body, health: { checks: [...policy.health], timeoutMs: policy.healthTimeoutMs } };
}
