// Who gives an order on the command line, for the audit records.
import { userInfo } from 'node:os';

/** The user's name; the person behind sudo where there is one. */
export function actorOf(env: NodeJS.ProcessEnv): string {
  const user = userInfo().username;
  return env.SUDO_USER === undefined ? user : `${env.SUDO_USER} (as ${user})`;
}
