// Takes credentials out of texts before anybody reads them: logs, error messages, answers. What has a form is found by its form,
// everything else by being known: whoever holds a secret tells it here as long as it lives.

/** What stands in the place of a secret. */
export const REDACTED = '[redacted]';

/** Names of fields, headers and parameters whose values are secrets, in any spelling of upper and lower case, with `-` or `_`. */
const SECRET_NAMES =
  'authorization|proxy-authorization|cookie|set-cookie|(?:[a-z]{1,20}[-_]){0,4}(?:token|password|passwd|secret|api[-_]?key|private[-_]?key|signature|sig)';

/** A secret shorter than this is not looked for by its value: it would be found in words that have nothing to do with it. */
const KNOWN_CHARS_MIN = 6;

const FORMS: readonly (readonly [RegExp, string])[] = [
  // RFC 3986, 3.2.1: everything before the last @ of an authority, whatever it holds.
  [/(\b[a-z][a-z0-9+.-]{0,20}:\/\/)[^\s/?#"'<>]*@/gi, `$1${REDACTED}@`],
  // RFC 9110, 11.6.2: a header as it stands in a request or in somebody's words.
  [/\b((?:proxy-)?authorization\s*[:=]\s*(?:[a-z][a-z0-9-]*\s+)?)[A-Za-z0-9._~+/=-]{6,}/gi, `$1${REDACTED}`],
  [/\b((?:bearer|basic|license)\s+)[A-Za-z0-9._~+/=-]{12,}/gi, `$1${REDACTED}`],
  // A parameter of a URL or of a command.
  [new RegExp(`([?&;\\s]|--)((?:${SECRET_NAMES})=)[^\\s&;"'<>]+`, 'gi'), `$1$2${REDACTED}`],
  [/-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[^"]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|(?=")|$)/g, REDACTED],
];

/**
 * The beginning of a secret field of JSON: `"token":"`, or `\\"token\\":\\"` where JSON stands inside a string of JSON; six deep, for
 * without a bound a long row of backslashes would be read again from each of them.
 */
const FIELD = new RegExp(`(\\\\{0,63})"(?:${SECRET_NAMES})\\1"\\s*:\\s*\\1"`, 'gi');

const known = new Map<string, number>();

/**
 * Looks for this very text from now on, as it is and as it stands in URLs and JSON, until the returned function is called.
 * For license tokens and whatever else has no form. Short ones are not looked for, and `isKept` says so.
 */
export function rememberSecret(secret: string): { readonly isKept: boolean; readonly forget: () => void } {
  if (secret.length < KNOWN_CHARS_MIN) return { isKept: false, forget: () => {} };
  const spellings = new Set([secret, encodeURIComponent(secret), JSON.stringify(secret).slice(1, -1)]);
  for (const each of spellings) known.set(each, (known.get(each) ?? 0) + 1);
  let isHeld = true;
  return {
    isKept: true,
    forget: () => {
      if (!isHeld) return;
      isHeld = false;
      for (const each of spellings) {
        const holders = (known.get(each) ?? 1) - 1;
        if (holders === 0) known.delete(each);
        else known.set(each, holders);
      }
    },
  };
}

/**
 * An environment for programs that need none of our credentials: what a QEMU under another user has in its environment, its guest may
 * one day read. Proxies go as well, because their URLs carry passwords.
 */
export function withoutCredentials(env: Readonly<Record<string, string | undefined>>): Record<string, string> {
  const isHarmless = (name: string) =>
    !/proxy|token|password|passwd|secret|credential|api_?key|private_?key/i.test(name);
  const entries = Object.entries(env).flatMap(([name, value]) =>
    value !== undefined && isHarmless(name) && redactText(value) === value ? [[name, value] as const] : [],
  );
  return Object.fromEntries(entries);
}

/** The text without what is a secret by its form or is known as one. */
export function redactText(text: string): string {
  let clean = redactFields(text);
  for (const secret of known.keys()) if (clean.includes(secret)) clean = clean.replaceAll(secret, REDACTED);
  for (const [form, replacement] of FORMS) clean = clean.replace(form, replacement);
  return clean;
}

function redactFields(text: string): string {
  let clean = '';
  let done = 0;
  for (const match of text.matchAll(FIELD)) {
    const start = match.index + match[0].length;
    if (match.index < done) continue;
    clean += text.slice(done, start) + REDACTED;
    done = endOfString(text, start, match[1]?.length ?? 0);
  }
  return clean + text.slice(done);
}

/**
 * Where a string of JSON ends whose own quotes have so many backslashes before them. A quote inside it has twice as many and one,
 * and each escaped backslash before a quote adds twice as many and two.
 */
function endOfString(text: string, start: number, slashes: number): number {
  let run = 0;
  for (let at = start; at < text.length; at += 1) {
    const letter = text[at];
    if (letter === '"' && run >= slashes && (run - slashes) % (2 * (slashes + 1)) === 0) return at - slashes;
    run = letter === '\\' ? run + 1 : 0;
  }
  return text.length;
}
