// Runs inside the bench's network namespace: hands connections of guests on to the relay outside, and asks guests for pages.
// Arguments: address and port to listen on, the relay's unix socket. Reads {"id","url"} a line, answers {"id","text"} when the page came.
import { get } from 'node:http';
import { connect, createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { systemClock } from '../../src/base/clock.ts';

/** Milliseconds between two tries, until a connection stands, and until the whole page is there (the guest runs dpkg-query for it). */
const TRY_EVERY_MS = 50;
const CONNECT_TIMEOUT_MS = 250;
const PAGE_TIMEOUT_MS = 30_000;

const [address = '', port = '', socketPath = ''] = process.argv.slice(2);

const server = createServer((guest) => {
  const relay = connect(socketPath);
  guest.pipe(relay).pipe(guest);
  guest.on('error', () => relay.destroy());
  relay.on('error', () => guest.destroy());
});
server.listen(Number(port), address, () => process.stdout.write('ready\n'));

/** The page's text, or null when nobody answered this once. */
async function tryPage(url: string): Promise<string | null> {
  return await new Promise((resolve) => {
    const asked = get(url, { agent: false }, (answer) => {
      const pieces: Buffer[] = [];
      answer.on('data', (piece: Buffer) => pieces.push(piece));
      answer.on('end', () => resolve(answer.statusCode === 200 ? Buffer.concat(pieces).toString('utf8') : null));
      answer.on('error', () => resolve(null));
    });
    // A SYN that nobody answered is sent anew after a second: a new connection is sooner.
    let cancel = systemClock.after(CONNECT_TIMEOUT_MS, () => asked.destroy());
    asked.on('socket', (socket) => {
      socket.once('connect', () => {
        cancel();
        cancel = systemClock.after(PAGE_TIMEOUT_MS, () => asked.destroy());
      });
    });
    asked.on('close', () => {
      cancel();
      resolve(null);
    });
    asked.on('error', () => {});
  });
}

const wanted = new Set<number>();
async function ask(id: number, url: string): Promise<void> {
  wanted.add(id);
  while (wanted.has(id)) {
    const text = await tryPage(url);
    if (text !== null && wanted.delete(id)) process.stdout.write(`${JSON.stringify({ id, text })}\n`);
    else await systemClock.sleep(TRY_EVERY_MS);
  }
}

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  // The cast holds: the bench that started this program writes these lines.
  const { id, url } = JSON.parse(line) as { readonly id: number; readonly url: string | null };
  if (url === null) wanted.delete(id);
  else void ask(id, url);
});
lines.on('close', () => process.exit(0));
