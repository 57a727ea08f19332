// What a VM is made of: versioned, hashed, and the only source of disk formats and paths.
import { type Static, Type } from 'typebox';
import { BackingSchema, DiskFormatSchema, HostPathSchema } from '../model/disk-image.ts';
import { DriveFrontEndSchema, DriveTransportSchema } from '../model/drive.ts';
import { VmIdSchema } from '../model/ids.ts';

const strict = { additionalProperties: false } as const;
const absolutePath = HostPathSchema;
const word = Type.String({ minLength: 1, maxLength: 64, pattern: '^[a-zA-Z0-9][a-zA-Z0-9._-]*$' });
const mac = Type.String({ pattern: '^[0-9a-f]{2}(:[0-9a-f]{2}){5}$' });

/** Removable media of a VM; q35's AHCI controller has six ports, and the drive may need one. */
export const MEDIA_MAX = 4;

export const NIC_MODELS = ['virtio-net-pci', 'e1000', 'e1000e', 'rtl8139', 'vmxnet3'] as const;

/** Where the VM's taps, bridge and QEMU live: the host's own network, or a namespace. */
export const NamespaceSchema = Type.Union([
  Type.Object({ kind: Type.Literal('host') }, strict),
  /** A named namespace of `ip netns`. */
  Type.Object({ kind: Type.Literal('named'), name: word }, strict),
  /** The network (and user) namespace of a process: what an ordinary user gets from `unshare -Urn`. */
  Type.Object({ kind: Type.Literal('process'), pid: Type.Integer({ minimum: 2 }), withUser: Type.Boolean() }, strict),
]);
export type Namespace = Static<typeof NamespaceSchema>;

export const DiskSchema = Type.Object(
  {
    id: word,
    path: absolutePath,
    /** Never probed: a guest can write any header into a raw disk. */
    format: DiskFormatSchema,
    /** What the image was made on top of; never taken from its header. */
    backing: Type.Optional(BackingSchema),
    readOnly: Type.Optional(Type.Boolean()),
  },
  strict,
);

export const NicSchema = Type.Object(
  {
    id: word,
    // typebox loses the words of a mapped list, so their type is given.
    model: Type.Unsafe<(typeof NIC_MODELS)[number]>(Type.Union(NIC_MODELS.map((model) => Type.Literal(model)))),
    mac,
    /** Bridge that the tap joins; made by the daemon if it is missing and `createBridge` is set. */
    bridge: Type.String({ minLength: 1, maxLength: 15, pattern: '^[a-zA-Z0-9_.-]+$' }),
    createBridge: Type.Optional(Type.Boolean()),
    /** False: this NIC is never unplugged or fenced (a management network of the operator's own); recorded when the VM is added. */
    gated: Type.Optional(Type.Boolean()),
  },
  strict,
);

/** How the VM sees its drive; what is left out is chosen by what its hardware and its guest know. */
export const DriveChoiceSchema = Type.Object(
  { transport: Type.Optional(DriveTransportSchema), frontEnd: Type.Optional(DriveFrontEndSchema) },
  strict,
);

export const ManagedVmSchema = Type.Object(
  {
    format: Type.Literal('pratique.vm/1'),
    kind: Type.Literal('managed'),
    vm: VmIdSchema,
    machine: Type.Union([Type.Literal('q35')]),
    memoryMiB: Type.Integer({ minimum: 32, maximum: 1_048_576 }),
    cpus: Type.Integer({ minimum: 1, maximum: 256 }),
    /** Direct kernel boot; absent: the first disk's boot loader. */
    kernel: Type.Optional(
      Type.Object(
        { image: absolutePath, initrd: Type.Optional(absolutePath), commandLine: Type.String({ maxLength: 2048 }) },
        strict,
      ),
    ),
    disks: Type.Array(DiskSchema, { maxItems: 16 }),
    nics: Type.Array(NicSchema, { maxItems: 8 }),
    /** Read-only CD images shown to the guest only after admission. */
    media: Type.Optional(Type.Array(Type.Object({ id: word, path: absolutePath }, strict), { maxItems: MEDIA_MAX })),
    namespace: Type.Optional(NamespaceSchema),
    /** Whether the guest has virtio-scsi for a CD front-end (TCG guests boot slower with it). */
    scsi: Type.Optional(Type.Boolean()),
    drive: Type.Optional(DriveChoiceSchema),
    /** The guest has cloud-init: it gets its configuration as a NoCloud seed as well, from power-on on. */
    cloudInit: Type.Optional(Type.Boolean()),
  },
  strict,
);
export type ManagedVm = Static<typeof ManagedVmSchema>;

/** Somebody else started this QEMU; we were given a monitor of our own, the channel and the taps. */
export const AttachedVmSchema = Type.Object(
  {
    format: Type.Literal('pratique.vm/1'),
    kind: Type.Literal('attached'),
    vm: VmIdSchema,
    qmpSocket: absolutePath,
    channelSocket: absolutePath,
    /** Tap of each NIC by QEMU device id. */
    nics: Type.Array(
      Type.Object(
        {
          id: word,
          tap: Type.String({ minLength: 1, maxLength: 15, pattern: '^[a-zA-Z0-9_.-]+$' }),
          /** False: as for managed VMs; whatever this NIC is connected to is left alone. */
          gated: Type.Optional(Type.Boolean()),
        },
        strict,
      ),
      {
        maxItems: 8,
      },
    ),
    /** Id of a spare pcie-root-port for the drive. */
    drivePort: Type.Optional(word),
    /** Names of a SCSI and of a USB bus that take a device while the VM runs. */
    driveScsiBus: Type.Optional(word),
    driveUsbBus: Type.Optional(word),
    /** Id of an empty ide-cd tray that is the drive's alone. */
    driveTray: Type.Optional(word),
    drive: Type.Optional(DriveChoiceSchema),
    namespace: Type.Optional(NamespaceSchema),
  },
  strict,
);
export type AttachedVm = Static<typeof AttachedVmSchema>;

export const VmSpecSchema = Type.Union([ManagedVmSchema, AttachedVmSchema]);
export type VmSpec = Static<typeof VmSpecSchema>;

/** The NICs that are unplugged and fenced: all but those that the operator took out by name. */
export function gatedNics<Nic extends { readonly gated?: boolean }>(nics: readonly Nic[]): readonly Nic[] {
  return nics.filter(({ gated }) => gated !== false);
}
