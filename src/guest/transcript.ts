// One run of a stale VM as it goes over the channel, line by line: for the protocol page, validated by a test.
import { AGENT_EXAMPLES, HOST_EXAMPLES } from './examples.ts';
import type { AgentMessage, HostMessage } from './messages.ts';

export type TranscriptLine =
  | { readonly from: 'agent'; readonly message: AgentMessage }
  | { readonly from: 'host'; readonly message: HostMessage }
  | { readonly from: 'note'; readonly text: string };

const agent = (message: AgentMessage): TranscriptLine => ({ from: 'agent', message });
const host = (message: HostMessage): TranscriptLine => ({ from: 'host', message });
const note = (text: string): TranscriptLine => ({ from: 'note', text });
const { hello, inventory, drive, progress, installed, confirm } = AGENT_EXAMPLES;
const { open, offer, release, admitted } = HOST_EXAMPLES;

export const TRANSCRIPT: readonly TranscriptLine[] = [
  note('The guest has booted, its cable is unplugged. The agent opens the port.'),
  agent(hello),
  host(open),
  host({ ...HOST_EXAMPLES['ask-inventory'], seq: 1 }),
  agent({ ...inventory, seq: 1 }),
  note('The host compares, plans, fetches, attaches the drive.'),
  host({ ...offer, seq: 2 }),
  note('The agent mounts the drive, checks the manifest and every file against their digests.'),
  agent({ ...drive, seq: 2 }),
  agent({ ...progress, seq: 3 }),
  agent({ ...installed, seq: 4 }),
  host({ ...release, seq: 3 }),
  note('The agent unmounts.'),
  agent({ ...drive, seq: 5, state: 'released' }),
  note('The host detaches the drive.'),
  host({ ...HOST_EXAMPLES['ask-confirm'], seq: 4 }),
  note('The agent takes its inventory anew.'),
  agent({ ...confirm, seq: 6 }),
  note('The host judges, records, and plugs the cable in.'),
  host({ ...admitted, seq: 5 }),
];
