// Turns an item of configuration into the files of this guest.
import type { ApplyStep, ConfigFileContent, ConfigSetting, GuestConfigItem } from '../../src/model/guest-config.ts';
import { readLine } from '../durable.ts';
import { OWN_SERVICE } from '../installers/service-starts.ts';
import { inRoot, type Paths } from '../paths.ts';
import { AgentError, type Platform } from '../platform/platform.ts';
import { findGroup, findUser } from './accounts.ts';
import type { Change, Rendered, Step } from './change.ts';
import { renderNetwork } from './network.ts';
import { encoded, fromBase64, toBinary, withBlock } from './text.ts';

/** The changes and steps of one item. Throws AgentError for what this guest cannot have. */
export async function renderItem(platform: Platform, paths: Paths, item: GuestConfigItem): Promise<Rendered> {
  const { changes, steps } = await renderSetting(platform, paths, item);
  return { changes, steps: [...steps, ...(item.apply ?? []).flatMap(stepOf)] };
}

async function renderSetting(platform: Platform, paths: Paths, { item, setting }: GuestConfigItem): Promise<Rendered> {
  switch (setting.kind) {
    case 'hostname':
      return renderHostname(platform, paths, setting.hostname);
    case 'network':
      return await renderNetwork(platform, paths, item, setting.interfaces);
    case 'file':
      return { changes: [renderFile(platform, paths, setting.file)], steps: [] };
    case 'ssh-keys':
      return { changes: [renderKeys(platform, paths, item, setting)], steps: [] };
    case 'product':
      return { changes: setting.files.map((file) => renderFile(platform, paths, file)), steps: [] };
    default:
      return setting satisfies never;
  }
}

/** A reboot is asked of the host; the units are this guest's. */
function stepOf(step: ApplyStep): readonly Step[] {
  if ('reboot' in step) return [];
  const [verb, unit] = 'restart' in step ? (['restart', step.restart] as const) : (['reload', step.reload] as const);
  if (unit === OWN_SERVICE || unit === `${OWN_SERVICE}.service`)
    throw new AgentError('path-protected', 'the agent does not restart itself for a configuration');
  return [{ do: verb, unit }];
}

/** The name is the first label; the whole of it is found by it in /etc/hosts (hosts(5), and Debian's own installer). */
function renderHostname(platform: Platform, paths: Paths, hostname: string): Rendered {
  const short = hostname.split('.')[0] ?? hostname;
  const line = `127.0.1.1\t${hostname}${short === hostname ? '' : ` ${short}`}`;
  const root = { mode: 0o644, ...ownerOf(platform, paths, {}) };
  const before = readLine(platform, `${paths.proc}/sys/kernel/hostname`);
  return {
    changes: [
      { path: '/etc/hostname', content: () => ({ text: `${short}\n` }), access: root, watch: 'whole' },
      {
        path: '/etc/hosts',
        content: (hosts) => ({ text: withHostLine(hosts ?? '', line) }),
        access: 'keep',
        watch: 'none',
      },
    ],
    steps: [{ do: 'hostname', name: short, before }],
  };
}

function withHostLine(hosts: string, line: string): string {
  const lines = hosts.split('\n').filter((each, index, all) => each !== '' || index < all.length - 1);
  const at = lines.findIndex((each) => /^127\.0\.1\.1\s/.test(each));
  const others = lines.filter((each) => !/^127\.0\.1\.1\s/.test(each));
  return `${others.toSpliced(at < 0 ? others.length : at, 0, line).join('\n')}\n`;
}

function renderFile(platform: Platform, paths: Paths, file: ConfigFileContent): Change {
  const text = file.encoding === 'base64' ? toBinary(fromBase64(file.content)) : encoded(platform, file.content);
  const mode = Number.parseInt(file.mode ?? '0644', 8);
  return {
    path: file.path,
    content: () => ({ text }),
    access: { mode, ...ownerOf(platform, paths, file) },
    watch: 'whole',
  };
}

function ownerOf(platform: Platform, paths: Paths, { owner = 'root', group }: Partial<ConfigFileContent>) {
  const { uid, gid } = findUser(platform, paths, owner);
  return { uid, gid: group === undefined ? gid : findGroup(platform, paths, group) };
}

type Keys = Extract<ConfigSetting, { kind: 'ssh-keys' }>;

/** sshd(8), AUTHORIZED_KEYS: a file that anybody else could write to would not be read. */
function renderKeys(platform: Platform, paths: Paths, item: string, { user, keys, exclusive = false }: Keys): Change {
  const { uid, gid, home } = findUser(platform, paths, user);
  const found = home.startsWith('/') && home !== '/' ? platform.files.stat(inRoot(paths, home)) : null;
  if (found === null || found.kind === 'file') throw new AgentError('no-home', `${user} has no home folder`);
  const lines = keys.map((key) => encoded(platform, key));
  return {
    path: `${home}/.ssh/authorized_keys`,
    content: (before) => ({ text: withBlock(exclusive ? '' : (before ?? ''), item, lines) }),
    access: { mode: 0o600, uid, gid },
    folder: { mode: 0o700, uid, gid },
    watch: 'lines',
  };
}
