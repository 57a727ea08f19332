// What the agent reports, as events of its run and notes for people.
import { counted, printable } from '../base/printable.ts';
import type { AgentReport } from '../guest/messages.ts';
import type { ItemResult } from '../model/result.ts';
import type { Runner } from './runner.ts';
import type { Session } from './state.ts';

/** Tells the runner; what only people want to know is noted. */
export function postReport(runner: Pick<Runner, 'note' | 'post'>, session: Session, body: AgentReport): void {
  switch (body.type) {
    case 'inventory':
      runner.post({ kind: 'inventory', session, rebootRequired: body.inventory.rebootRequired });
      return;
    case 'drive':
      runner.note('guest', `the agent ${body.state} the drive${body.code === undefined ? '' : ` (${body.code})`}`);
      runner.post({
        kind: 'drive',
        session,
        state: body.state,
        manifestDigest: body.manifestDigest,
        code: body.code ?? body.state,
        detail: printable(body.detail ?? ''),
      });
      return;
    case 'progress': {
      const { item, phase, done, total } = body;
      runner.note('progress', `${printable(item)}: ${phase}`, { item: printable(item), phase, done, total });
      return;
    }
    case 'installed':
      runner.note('guest', `the agent reports ${counted(body.results.length, 'result')}${failureText(body.results)}`);
      runner.post({
        kind: 'installed',
        session,
        manifestDigest: body.manifestDigest,
        results: body.results,
        rebootRequired: body.rebootRequired,
      });
      return;
    case 'confirm':
      // The type is the wire's; the envelope's session is what counts and comes from the channel.
      runner.post({ kind: 'confirm', session, confirm: { ...body, ...session, seq: 0 } });
      return;
    case 'fault':
      runner.note('guest', `the agent has trouble (${body.code}): ${printable(body.detail)}`);
      return;
    case 'bye':
      runner.note('guest', `the agent leaves: ${body.reason}`);
      return;
    case 'pong':
      return;
    default:
      body satisfies never;
  }
}

/** The first that failed: a run may go on all the same, and then nothing else says it. */
function failureText(results: readonly ItemResult[]): string {
  const failed = results.find(({ outcome }) => outcome === 'failed');
  return failed === undefined
    ? ''
    : `: ${printable(failed.item, 255)} failed (${printable(failed.code ?? 'failed', 100)})`;
}
