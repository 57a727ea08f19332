// The same configuration as cloud-init's NoCloud seed: for a guest that has cloud-init, so that it comes up right at its very first boot.
//
// Source: cloud-init's documentation, "NoCloud", "Cloud config examples", "Networking config version 2". Everything is written as JSON,
// which is YAML: no text of an item can end the place it stands in. The agent still applies and confirms: nothing here opens a gate.
import type { ConfigFileContent, GuestConfigItem, Interface } from '../model/guest-config.ts';

/** The files of a seed, as `drive/seed.ts` builds them. */
export type NoCloudFiles = {
  readonly userData: string;
  readonly metaData: string;
  readonly networkConfig?: string;
};

export type NoCloudOptions = {
  readonly vm: string;
  readonly items: readonly GuestConfigItem[];
};

/** The seed of a VM; null when there is nothing that cloud-init would do. */
export function renderNoCloud({ vm, items }: NoCloudOptions): NoCloudFiles | null {
  if (items.length === 0) return null;
  const interfaces = items.flatMap(({ setting }) => (setting.kind === 'network' ? setting.interfaces : []));
  const files = items.flatMap(filesOf);
  const commands = commandsOf(items);
  const users = usersOf(items);
  const hostname = items.flatMap(({ setting }) => (setting.kind === 'hostname' ? [setting.hostname] : []))[0];
  const cloudConfig = {
    ...hostnameOf(hostname),
    // Without a list there would be a user of the distribution's, and an empty one is against the schema.
    users: users.length === 0 ? [{ name: 'root', lock_passwd: false }] : users,
    disable_root: false,
    // The host's keys of the guest and its package sources are no part of a configuration that may change again.
    ssh_deletekeys: false,
    apt: { preserve_sources_list: true },
    // The word by which the image's own stays; cloud-init's default fails where that locale is not installed.
    locale: 'false',
    ...(files.length === 0 ? {} : { write_files: files }),
    ...(commands.length === 0 ? {} : { runcmd: commands }),
  };
  return {
    userData: `#cloud-config\n${JSON.stringify(cloudConfig, null, 2)}\n`,
    metaData: `${JSON.stringify({ 'instance-id': instanceId(vm, items), ...localHostname(hostname) })}\n`,
    ...(interfaces.length === 0 ? {} : { networkConfig: `${JSON.stringify(networkOf(interfaces), null, 2)}\n` }),
  };
}

/**
 * cloud-init sets a machine up once for each instance id. It is made from the versions of the items, which tell nothing of what is in
 * them: when one of them changes, what must be done again is.
 */
export function instanceId(vm: string, items: readonly GuestConfigItem[]): string {
  const versions = items.map(({ item, version }) => `${item}=${version}`).sort();
  return `pratique-${vm}-${shortHash(versions.join('\n'))}`;
}

/** FNV-1a, 64 bits: the versions are keyed digests already, and this only makes a name of them. */
function shortHash(text: string): string {
  let hash = 0xcbf29ce484222325n;
  for (const byte of Buffer.from(text)) hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
  return hash.toString(16).padStart(16, '0');
}

function hostnameOf(hostname: string | undefined): Record<string, unknown> {
  if (hostname === undefined) return { preserve_hostname: true };
  const fqdn = hostname.includes('.') ? { fqdn: hostname } : {};
  return { hostname: hostname.split('.')[0], ...fqdn, manage_etc_hosts: false };
}

const localHostname = (hostname: string | undefined) => (hostname === undefined ? {} : { 'local-hostname': hostname });

/** A user that is there already keeps everything but gets the keys. `exclusive` is the agent's part: cloud-init only adds. */
function usersOf(items: readonly GuestConfigItem[]): readonly Record<string, unknown>[] {
  return items.flatMap(({ setting }) =>
    setting.kind === 'ssh-keys' && setting.keys.length > 0
      ? [{ name: setting.user, ssh_authorized_keys: setting.keys, lock_passwd: false }]
      : [],
  );
}

function filesOf({ setting }: GuestConfigItem): readonly Record<string, unknown>[] {
  if (setting.kind === 'file') return [fileOf(setting.file)];
  return setting.kind === 'product' ? setting.files.map(fileOf) : [];
}

function fileOf({ path, content, encoding, mode = '0644', owner = 'root', group = 'root' }: ConfigFileContent) {
  return {
    path,
    content,
    ...(encoding === 'base64' ? { encoding: 'b64' } : {}),
    permissions: mode,
    owner: `${owner}:${group}`,
  };
}

/**
 * Only what the typed apply steps say, as lists of words: no shell reads them. A unit that is not there, or not yet up, is no failure
 * of the first boot. A reboot is left to the run, which knows whether the VM's policy allows it.
 */
function commandsOf(items: readonly GuestConfigItem[]): readonly (readonly string[])[] {
  return items.flatMap(({ apply = [] }) =>
    apply.flatMap((step) => {
      if ('restart' in step) return [['systemctl', '--no-block', 'try-restart', '--', step.restart]];
      if ('reload' in step) return [['systemctl', '--no-block', 'try-reload-or-restart', '--', step.reload]];
      return [];
    }),
  );
}

function networkOf(interfaces: readonly Interface[]): Record<string, unknown> {
  const ethernets = interfaces.map((given, index) => [`lan${index}`, ethernetOf(given)] as const);
  return { version: 2, ethernets: Object.fromEntries(ethernets) };
}

function ethernetOf({ mac, dhcp4, dhcp6, addresses, gateway4, gateway6, dns, search, mtu }: Interface) {
  const nameservers = {
    ...(dns === undefined ? {} : { addresses: dns }),
    ...(search === undefined ? {} : { search }),
  };
  return {
    match: { macaddress: mac },
    dhcp4: dhcp4 ?? false,
    dhcp6: dhcp6 ?? false,
    ...(addresses === undefined ? {} : { addresses }),
    // cloud-init 22.4 writes a route to ::/0 as one to ::/64; these older keys every version understands.
    ...(gateway4 === undefined ? {} : { gateway4 }),
    ...(gateway6 === undefined ? {} : { gateway6 }),
    ...(Object.keys(nameservers).length === 0 ? {} : { nameservers }),
    ...(mtu === undefined ? {} : { mtu }),
  };
}
