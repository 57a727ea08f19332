// Reads HMP's `info network`: no QMP command tells which backend a NIC is connected to. Pure.

export type NetworkCard = {
  /** QEMU's device id of the NIC. */
  readonly nic: string;
  /** `tap`, `user`, `socket`, …; null when nothing is connected. */
  readonly backend: string | null;
  /** The tap's name, if QEMU opened it itself; null when it was given a descriptor. */
  readonly tap: string | null;
};

/**
 * The NICs of the text, which looks like this:
 *   net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01
 *    \ hn0: index=0,type=tap,ifname=tap0,script=no,downscript=no
 */
export function readNetworkText(text: string): readonly NetworkCard[] {
  const cards: NetworkCard[] = [];
  for (const line of text.split('\n')) {
    const [, peer, name, type, rest = ''] = /^\s*(\\ )?(\S+): index=\d+,type=([a-z0-9-]+)(.*)/.exec(line) ?? [];
    if (name === undefined || type === undefined) continue;
    const last = cards.at(-1);
    if (type === 'nic') cards.push({ nic: name, backend: null, tap: null });
    else if (peer !== undefined && last !== undefined && last.backend === null) {
      const tap = /,ifname=([^,\s]+)/.exec(rest)?.[1] ?? null;
      cards[cards.length - 1] = { nic: last.nic, backend: type, tap };
    }
  }
  return cards;
}
