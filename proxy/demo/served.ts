// What the plugged-in guest serves over its network: a second word on what the agent said, from the application itself.
import type { ImageName } from '../../images/images.ts';
import type { DemoNetwork } from './demo-network.ts';

/** Milliseconds for the application to answer after the plug: under emulation nginx takes a few seconds to start. */
const SERVE_TIMEOUT_MS = 90_000;

export type Served = {
  /** Versions by product, as the guest's page lists them. */
  readonly versions: Readonly<Record<string, string>>;
  /** The running kernel, where the page tells it. */
  readonly kernel: string | null;
  /** Wall time of the guest at which the application started, where the page tells it. */
  readonly startedAtMs: number | null;
};

const PAGES: Readonly<Record<ImageName, readonly string[]>> = {
  tiny: ['version'],
  debian: ['cgi-bin/versions', 'version'],
  'debian-systemd': ['facts'],
  'debian-cloud': ['facts'],
};

/** Reads the guest's pages; null when it does not answer. */
export async function askGuest(options: {
  readonly network: DemoNetwork;
  readonly image: ImageName;
  readonly address: string;
}): Promise<Served | null> {
  const texts: string[] = [];
  for (const page of PAGES[options.image]) {
    const text = await options.network.fetchPage(`http://${options.address}/${page}`, SERVE_TIMEOUT_MS);
    if (text === null) return null;
    texts.push(page === 'version' ? `package hello ${text}` : text);
  }
  return parsePages(texts.join('\n'));
}

/** Lines of `[package ]NAME VERSION`, `kernel RELEASE` and `started SECONDS`; others are passed over. */
export function parsePages(text: string): Served {
  const versions: Record<string, string> = {};
  let kernel: string | null = null;
  let startedAtMs: number | null = null;
  for (const line of text.split('\n')) {
    const [first = '', second = '', third] = line.trim().split(' ');
    if (first === 'kernel') kernel = second;
    else if (first === 'started') startedAtMs = Number(second) * 1000;
    else if (first === 'package' && third !== undefined) versions[second] = third;
    else if (second !== '' && third === undefined) versions[first] = second;
  }
  return { versions, kernel, startedAtMs };
}
