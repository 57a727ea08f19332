// Schemas of the QMP answers that we use (QEMU's QAPI reference), each parsed where it is used.
import { Type } from 'typebox';
import { makeParser } from '../../base/parse.ts';

const ANSWER = 'host-fault/qmp-answer';

export const parseStatus = makeParser(
  Type.Object({ status: Type.String({ maxLength: 64 }), running: Type.Boolean() }),
  ANSWER,
);

export const parseNodes = makeParser(
  Type.Array(
    Type.Object({
      'node-name': Type.Optional(Type.String()),
      file: Type.Optional(Type.String()),
      image: Type.Optional(Type.Object({ 'virtual-size': Type.Optional(Type.Integer({ minimum: 0 })) })),
    }),
  ),
  ANSWER,
);

export const parseExports = makeParser(Type.Array(Type.Object({ id: Type.String({ maxLength: 256 }) })), ANSWER);

export const parseJobs = makeParser(
  Type.Array(
    Type.Object({
      id: Type.String({ maxLength: 256 }),
      status: Type.String({ maxLength: 32 }),
      error: Type.Optional(Type.String()),
    }),
  ),
  ANSWER,
);

/** BLOCK_IO_ERROR: `action` says whether QEMU stopped the VM, `nospace` whether a full disk was the reason. */
export const parseBlockError = makeParser(
  Type.Object({ action: Type.String({ maxLength: 32 }), nospace: Type.Optional(Type.Boolean()) }),
  ANSWER,
);

export const parseQomList = makeParser(Type.Array(Type.Object({ name: Type.String(), type: Type.String() })), ANSWER);

export const parseBlock = makeParser(
  Type.Array(
    Type.Object({
      qdev: Type.Optional(Type.String()),
      removable: Type.Optional(Type.Boolean()),
      locked: Type.Optional(Type.Boolean()),
      /** Absent where there is no tray. */
      tray_open: Type.Optional(Type.Boolean()),
      inserted: Type.Optional(Type.Object({ 'node-name': Type.Optional(Type.String()) })),
    }),
  ),
  ANSWER,
);

export const parseChardevs = makeParser(
  Type.Array(Type.Object({ label: Type.String(), 'frontend-open': Type.Optional(Type.Boolean()) })),
  ANSWER,
);

export const parseText = makeParser(Type.String(), ANSWER);

export const parseShutdownEvent = makeParser(
  Type.Object({ guest: Type.Boolean(), reason: Type.String({ maxLength: 64 }) }),
  ANSWER,
);

/** DEVICE_DELETED and DEVICE_UNPLUG_GUEST_ERROR. */
export const parseDeviceSign = makeParser(Type.Object({ device: Type.Optional(Type.String()) }), ANSWER);

export const parsePortChange = makeParser(Type.Object({ id: Type.String(), open: Type.Boolean() }), ANSWER);

type PciBus = { readonly devices: readonly PciDevice[] };
type PciDevice = {
  readonly class_info: { readonly class: number };
  readonly qdev_id: string;
  readonly pci_bridge?: { readonly devices?: readonly PciDevice[] };
};

const pciDevice = Type.Cyclic(
  {
    Device: Type.Object({
      class_info: Type.Object({ class: Type.Number() }),
      qdev_id: Type.String(),
      pci_bridge: Type.Optional(Type.Object({ devices: Type.Optional(Type.Array(Type.Ref('Device'))) })),
    }),
  },
  'Device',
);
const parsePci = makeParser(Type.Array(Type.Object({ devices: Type.Array(pciDevice) })), ANSWER);

/** The device ids of all PCI network cards (class 02), passed-through ones too, from `query-pci`; '' for one without an id. */
export function networkCards(answer: unknown): readonly string[] {
  // The cast holds: the schema above is this type, written recursively.
  const buses = parsePci(answer, 'query-pci') as readonly PciBus[];
  const all = (devices: readonly PciDevice[]): readonly PciDevice[] =>
    devices.flatMap((one) => [one, ...all(one.pci_bridge?.devices ?? [])]);
  return buses
    .flatMap((bus) => all(bus.devices))
    .filter((one) => one.class_info.class >> 8 === 0x02)
    .map((one) => one.qdev_id);
}
