// Secrets on the host: each a file of its own below one folder, readable by its owner only, read when a VM's configuration is made.
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { GUEST_SECRET_BYTES_MAX } from '../base/limits.ts';
import { rememberSecret } from '../base/redact.ts';
import { GuestConfigError } from './error.ts';

export type SecretFolder = {
  /** The bytes of a secret that is named at a place. Throws GuestConfigError `usage/guest-secret`, which never says what is in it. */
  readonly read: (name: string, at: string) => Promise<Buffer>;
};

/** What was read is taken out of logs and messages as long as the process lives, or until the file says something else. */
export function openSecretFolder(folder: string, uid = process.getuid?.() ?? 0): SecretFolder {
  const remember = makeSecretMemory();
  return {
    read: async (name, at) => {
      const bytes = await readSecret({ path: join(folder, name), at, uid });
      remember(name, [bytes.toString('utf8')]);
      return bytes;
    },
  };
}

/** Has the secrets of an owner taken out of logs and messages, until the owner has others. */
export function makeSecretMemory(): (owner: string, secrets: readonly string[]) => void {
  const remembered = new Map<string, { readonly key: string; readonly forget: () => void }>();
  return (owner, secrets) => {
    const texts = secrets.map((each) => each.trim());
    const key = JSON.stringify(texts);
    const before = remembered.get(owner);
    if (before?.key === key) return;
    const kept = texts.map((text) => rememberSecret(text));
    const forget = (): void => {
      for (const each of kept) each.forget();
    };
    remembered.set(owner, { key, forget });
    before?.forget();
  };
}

type Wanted = { readonly path: string; readonly at: string; readonly uid: number };

async function readSecret(wanted: Wanted): Promise<Buffer> {
  const { path, at } = wanted;
  const handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW).catch((cause: unknown) => {
    const isMissing = cause instanceof Error && 'code' in cause && cause.code === 'ENOENT';
    throw new GuestConfigError(
      'usage/guest-secret',
      `${at}: the secret ${path} ${isMissing ? 'is missing' : 'cannot be opened'}`,
      {
        ...(isMissing ? {} : { cause }),
        next: 'write it to that file, with mode 0600',
      },
    );
  });
  try {
    await checkFile(handle, wanted);
    return await handle.readFile();
  } finally {
    await handle.close();
  }
}

async function checkFile(handle: FileHandle, { path, at, uid }: Wanted): Promise<void> {
  const found = await handle.stat();
  const refuse = (problem: string, next: string) =>
    new GuestConfigError('usage/guest-secret', `${at}: the secret ${path} ${problem}`, { next });
  if (!found.isFile()) throw refuse('is no file', 'make it a file of its own');
  if ((found.mode & 0o077) !== 0) throw refuse('is open to others', `chmod 600 ${path}`);
  if (found.uid !== uid && found.uid !== 0) throw refuse('belongs to another user', `chown root ${path}`);
  if (found.size > GUEST_SECRET_BYTES_MAX) {
    throw refuse(`is larger than ${GUEST_SECRET_BYTES_MAX} bytes`, 'give the guest a smaller one');
  }
}
