// A QEMU that speaks the real QMP bytes over real unix sockets, without a machine behind: hundreds fit into one process.
import { rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';

export type FakeQemuOptions = {
  readonly qmpSocket: string;
  /** Absent: no agent channel. */
  readonly channelSocket?: string;
  /** Device ids of the NICs and the taps behind them (shown by `info network` and `query-pci`). */
  readonly nics: readonly { readonly id: string; readonly tap: string; readonly backend?: string }[];
  /** Ids of CD trays, empty at first. */
  readonly trays?: readonly string[];
  /** Disks as the command line puts them in: device id, and the node that the device has. */
  readonly disks?: readonly { readonly id: string; readonly node: string }[];
  /** Run state at the start; `prelaunch` is that of -S. */
  readonly status?: string;
  /** What a reset does: `shutdown` as our own VMs are started, `reset` as QEMU does where nobody said otherwise. */
  readonly rebootAction?: 'shutdown' | 'reset';
  /** A guest that never lets go of a PCI device. */
  readonly holdsDevices?: boolean;
  /** A guest whose kernel locks a removable drive from its insertion until `setLocked(false)`. */
  readonly locksDrives?: boolean;
  /** Ids of PCI ports that nothing is on, and names of buses, as QEMU names them: `scsi0.0`, `xhci.0`. */
  readonly ports?: readonly string[];
  readonly scsiBuses?: readonly string[];
  readonly usbBuses?: readonly string[];
  /** Called with each host connection to the channel: the guest's end of the wire. */
  readonly onChannel?: (stream: Duplex) => void;
  /** Called when a command has arrived, before it is carried out, and when an event is about to be sent: for clocks. */
  readonly onCommand?: (command: string, args: Readonly<Record<string, unknown>>) => void;
  readonly onEvent?: (event: string, data: Readonly<Record<string, unknown>>) => void;
  /** Answers a command by itself: lines to write as they are, or null for the usual answer. */
  readonly answer?: (command: { readonly execute: string; readonly id: unknown }) => readonly string[] | null;
};

export type FakeQemu = {
  /** Link of each NIC; up until somebody says otherwise, as in QEMU. */
  readonly links: ReadonlyMap<string, boolean>;
  readonly status: () => string;
  /** Every command, in order. */
  readonly commands: readonly { readonly execute: string; readonly arguments: Readonly<Record<string, unknown>> }[];
  readonly devices: ReadonlySet<string>;
  readonly nodes: ReadonlyMap<string, Readonly<Record<string, unknown>>>;
  /** The node in each tray. */
  readonly inserted: ReadonlyMap<string, string>;
  /** The guest locks or unlocks its removable drives. */
  readonly setLocked: (isLocked: boolean) => void;
  readonly isTrayOpen: (tray: string) => boolean;
  /** The guest opens a tray by itself. */
  readonly openTray: (tray: string) => void;
  /** Sends an event to the connected monitor. */
  readonly emit: (event: string, data?: Readonly<Record<string, unknown>>) => void;
  /** The guest resets itself or powers off; `-action reboot=shutdown,shutdown=pause` decides what follows. */
  readonly guestReset: () => void;
  readonly guestPowerOff: () => void;
  /** Address of the NBD server; null when there is none. */
  readonly nbdServer: () => string | null;
  /** Names of nodes shown over NBD, by the ids of their exports. */
  readonly exports: ReadonlyMap<string, string>;
  /** The node that a disk's device has. */
  readonly nodeOf: (disk: string) => string;
  /** Whether an agent has opened the port. */
  readonly setPortOpen: (isOpen: boolean) => void;
  /** Writes raw bytes to the connected monitor. */
  readonly writeRaw: (bytes: string | Uint8Array) => void;
  /** Dies: all sockets are gone. */
  readonly close: () => Promise<void>;
  readonly closed: Promise<void>;
};

const PORT_ID = 'pratique-agent';
const FAKE_DISK_BYTES = 64 * 1024 * 1024;
const GREETING = {
  QMP: { version: { qemu: { micro: 22, minor: 2, major: 7 }, package: 'fake' }, capabilities: ['oob'] },
};

type Arguments = Readonly<Record<string, unknown>>;
class Refusal extends Error {
  readonly qemuClass: string;
  constructor(desc: string, qemuClass = 'GenericError') {
    super(desc);
    this.qemuClass = qemuClass;
  }
}

/** Starts one fake; its sockets exist when this resolves. */
export async function startFakeQemu(options: FakeQemuOptions): Promise<FakeQemu> {
  const machine = new FakeMachine(options);
  await machine.listen();
  return machine;
}

class FakeMachine implements FakeQemu {
  readonly links = new Map<string, boolean>();
  readonly commands: { execute: string; arguments: Arguments }[] = [];
  readonly devices = new Set<string>();
  readonly nodes = new Map<string, Arguments>();
  readonly inserted = new Map<string, string>();
  readonly exports = new Map<string, string>();
  #nbdServer: string | null = null;
  readonly #disks = new Map<string, string>();
  /** What each device was added with. */
  readonly #properties = new Map<string, Arguments>();
  readonly #openTrays = new Set<string>();
  #isLocked: boolean;
  readonly closed: Promise<void>;
  readonly #options: FakeQemuOptions;
  readonly #servers: Server[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #setClosed: () => void;
  /** Connected monitor clients; the first is the one that is served. */
  #monitors: Socket[] = [];
  #status: string;
  #rebootAction: string;
  #isPortOpen = false;

  constructor(options: FakeQemuOptions) {
    this.#options = options;
    this.#status = options.status ?? 'prelaunch';
    this.#rebootAction = options.rebootAction ?? 'shutdown';
    this.#isLocked = options.locksDrives === true;
    for (const nic of options.nics) this.links.set(nic.id, true);
    for (const { id, node } of options.disks ?? []) {
      this.#disks.set(id, node);
      this.nodes.set(node, { driver: 'raw', 'node-name': node });
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    this.#setClosed = resolve;
  }

  async listen(): Promise<void> {
    const { qmpSocket, channelSocket } = this.#options;
    await this.#serve(qmpSocket, (socket) => this.#onMonitor(socket));
    if (channelSocket !== undefined) await this.#serve(channelSocket, (socket) => this.#options.onChannel?.(socket));
  }

  readonly status = (): string => {
    return this.#status;
  };

  readonly emit = (event: string, data: Arguments = {}): void => {
    this.#options.onEvent?.(event, data);
    const timestamp = { seconds: 1_700_000_000, microseconds: 0 };
    this.#write({ event, data, timestamp });
  };

  readonly guestReset = (): void => {
    if (this.#rebootAction === 'shutdown') this.#shutDown('guest-reset');
    else this.emit('RESET', { guest: true, reason: 'guest-reset' });
  };

  readonly guestPowerOff = (): void => {
    this.#shutDown('guest-shutdown');
  };

  readonly setPortOpen = (isOpen: boolean): void => {
    this.#isPortOpen = isOpen;
    this.emit('VSERPORT_CHANGE', { id: PORT_ID, open: isOpen });
  };

  readonly nbdServer = (): string | null => {
    return this.#nbdServer;
  };

  readonly nodeOf = (disk: string): string => {
    return this.#disks.get(disk) ?? '';
  };

  readonly setLocked = (isLocked: boolean): void => {
    this.#isLocked = isLocked;
  };

  readonly isTrayOpen = (tray: string): boolean => {
    return this.#openTrays.has(tray);
  };

  readonly openTray = (tray: string): void => {
    this.#moveTray(tray, true);
  };

  readonly writeRaw = (bytes: string | Uint8Array): void => {
    this.#monitors[0]?.write(bytes);
  };

  readonly close = async (): Promise<void> => {
    for (const socket of this.#sockets) socket.destroy();
    await Promise.all(this.#servers.map((server) => new Promise<void>((done) => server.close(() => done()))));
    this.#setClosed();
  };

  async #serve(path: string, onSocket: (socket: Socket) => void): Promise<void> {
    await rm(path, { force: true });
    const server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.on('error', () => {}); // The host went away.
      socket.on('close', () => this.#sockets.delete(socket));
      onSocket(socket);
    });
    this.#servers.push(server);
    await new Promise<void>((resolve, reject) => server.once('error', reject).listen(path, resolve));
  }

  /** QEMU serves one monitor client; the next one waits, connected, until that has gone. */
  #onMonitor(socket: Socket): void {
    socket.on('close', () => {
      const wasActive = this.#monitors[0] === socket;
      this.#monitors = this.#monitors.filter((one) => one !== socket);
      if (wasActive) this.#greet();
    });
    this.#monitors.push(socket);
    if (this.#monitors.length === 1) this.#greet();
  }

  #greet(): void {
    const [socket] = this.#monitors;
    if (socket === undefined) return;
    this.#write(GREETING);
    let pending = '';
    socket.setEncoding('utf8').on('data', (text: string) => {
      pending += text;
      for (let end = pending.indexOf('\n'); end >= 0; end = pending.indexOf('\n')) {
        const line = pending.slice(0, end);
        pending = pending.slice(end + 1);
        this.#take(line);
      }
    });
  }

  #take(line: string): void {
    // The cast holds for what our own client sends; anything else fails the test that sent it.
    const command = JSON.parse(line) as { execute: string; arguments?: Arguments; id: unknown };
    this.commands.push({ execute: command.execute, arguments: command.arguments ?? {} });
    this.#options.onCommand?.(command.execute, command.arguments ?? {});
    const own = this.#options.answer?.(command) ?? null;
    if (own !== null) {
      for (const text of own) this.writeRaw(text);
      return;
    }
    try {
      this.#write({ return: this.#run(command.execute, command.arguments ?? {}) ?? {}, id: command.id });
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#write({ error: { class: error.qemuClass, desc: error.message }, id: command.id });
    }
  }

  #run(command: string, args: Arguments): unknown {
    switch (command) {
      case 'qmp_capabilities':
        return {};
      case 'query-status':
        return { status: this.#status, singlestep: false, running: this.#status === 'running' };
      case 'set_link':
        return this.#setLink(text(args, 'name'), args.up === true);
      case 'cont':
        if (this.#status === 'shutdown') throw new Refusal('Resetting the Virtual Machine is required');
        this.#status = 'running';
        return this.emit('RESUME');
      case 'stop':
        this.#status = 'paused';
        return this.emit('STOP');
      case 'set-action':
        if (typeof args.reboot === 'string') this.#rebootAction = args.reboot;
        return {};
      case 'system_reset':
        return this.#systemReset();
      case 'system_powerdown':
        setImmediate(() => this.guestPowerOff());
        return {};
      case 'quit':
        setImmediate(() => void this.close());
        return {};
      case 'blockdev-add':
        return this.#addNode(args);
      case 'blockdev-reopen':
        return this.#reopenNodes(args);
      case 'blockdev-del':
        return this.#deleteNode(text(args, 'node-name'));
      case 'device_add':
        return this.#addDevice(args);
      case 'device_del':
        return this.#deleteDevice(text(args, 'id'));
      case 'blockdev-open-tray':
        return this.#askTrayOpen(text(args, 'id'), args.force === true);
      case 'blockdev-close-tray':
        return this.#moveTray(text(args, 'id'), false);
      case 'blockdev-insert-medium':
        this.#requireOpen(text(args, 'id'));
        this.inserted.set(text(args, 'id'), text(args, 'node-name'));
        return {};
      case 'blockdev-remove-medium':
        this.#requireOpen(text(args, 'id'));
        this.inserted.delete(text(args, 'id'));
        return {};
      case 'query-block':
        return this.#queryBlock();
      case 'query-named-block-nodes':
        return [...this.nodes].map(([name, node]) => ({
          'node-name': name,
          file: fileOf(node),
          drv: node.driver,
          image: { 'virtual-size': FAKE_DISK_BYTES },
        }));
      case 'query-jobs':
        return [];
      case 'qom-set':
        return this.#setDrive(text(args, 'path'), text(args, 'value'));
      case 'nbd-server-start':
        return this.#startNbd(args);
      case 'nbd-server-stop':
        if (this.#nbdServer === null) throw new Refusal('NBD server not running');
        this.#nbdServer = null;
        this.exports.clear();
        return {};
      case 'query-block-exports':
        return [...this.exports].map(([id, node]) => ({ id, type: 'nbd', 'node-name': node, 'shutting-down': false }));
      case 'block-export-add':
        if (this.#nbdServer === null) throw new Refusal('NBD server not running');
        this.exports.set(text(args, 'id'), text(args, 'node-name'));
        return {};
      case 'block-export-del':
        if (!this.exports.delete(text(args, 'id'))) throw new Refusal('Export is not found');
        return this.emit('BLOCK_EXPORT_DELETED', { id: args.id });
      case 'query-chardev':
        return [{ label: 'pratique-channel', filename: 'unix', 'frontend-open': this.#isPortOpen }];
      case 'query-pci':
        return [
          { bus: 0, devices: this.#options.nics.map((nic) => ({ class_info: { class: 512 }, qdev_id: nic.id })) },
        ];
      case 'qom-list':
        return this.#listObjects(text(args, 'path'));
      case 'qom-get':
        return this.#getProperty(text(args, 'path'), text(args, 'property'));
      case 'ringbuf-read':
        return '';
      case 'human-monitor-command':
        return this.#infoNetwork();
      default:
        throw new Refusal(`The command ${command} has not been found`, 'CommandNotFound');
    }
  }

  #setLink(name: string, isUp: boolean): void {
    if (!this.links.has(name)) throw new Refusal(`Device '${name}' not found`, 'DeviceNotFound');
    this.links.set(name, isUp);
  }

  #systemReset(): void {
    if (this.#rebootAction === 'shutdown') {
      this.#shutDown('host-qmp-system-reset');
      return;
    }
    if (this.#status !== 'running') this.#status = 'prelaunch';
    // A reset completes what the guest had been asked to let go of.
    if (this.#options.holdsDevices === true) for (const id of this.devices) this.#forgetDevice(id);
    this.emit('RESET', { guest: false, reason: 'host-qmp-system-reset' });
  }

  #shutDown(reason: string): void {
    this.emit('SHUTDOWN', { guest: reason.startsWith('guest'), reason });
    this.#status = 'shutdown';
    this.emit('STOP');
  }

  #addNode(args: Arguments): void {
    const name = text(args, 'node-name');
    if (this.nodes.has(name)) throw new Refusal(`Duplicate nodes with node-name='${name}'`);
    this.nodes.set(name, args);
  }

  #reopenNodes(args: Arguments): void {
    // The cast holds for what our own client sends.
    for (const node of args.options as readonly Arguments[]) {
      if (typeof node.file === 'string' && !this.nodes.has(node.file)) throw new Refusal('Cannot find device');
      this.nodes.set(text(node, 'node-name'), node);
    }
  }

  #deleteNode(name: string): void {
    if (!this.nodes.has(name)) throw new Refusal(`Failed to find node with node-name='${name}'`);
    const readers = [
      ...[...this.nodes.values()].flatMap((node) => [node.file, node.target]),
      ...this.#disks.values(),
      ...this.exports.values(),
      ...[...this.#properties.values()].map((properties) => properties.drive),
      ...this.inserted.values(),
    ];
    if (readers.includes(name)) throw new Refusal(`Block device ${name} is in use`);
    this.nodes.delete(name);
  }

  /** As the real one of 7.2: given the node that it has, a failed assertion ends it. */
  #setDrive(path: string, node: string): void {
    const id = path.replace('/machine/peripheral/', '');
    const present = this.#disks.get(id);
    if (present === undefined) throw new Refusal(`Device '${path}' not found`, 'DeviceNotFound');
    if (!this.nodes.has(node)) throw new Refusal(`Property 'virtio-blk-pci.drive' can't find value '${node}'`);
    if (present === node) void this.close();
    this.#disks.set(id, node);
  }

  #startNbd(args: Arguments): void {
    if (this.#nbdServer !== null) throw new Refusal('NBD server already running');
    // The cast holds for what our own client sends.
    const { data } = args.addr as { readonly data: { readonly path: string } };
    this.#nbdServer = data.path;
  }

  #moveTray(id: string, isOpen: boolean): void {
    if (this.#openTrays.has(id) === isOpen) return;
    if (isOpen) this.#openTrays.add(id);
    else this.#openTrays.delete(id);
    this.emit('DEVICE_TRAY_MOVED', { device: '', 'tray-open': isOpen, id });
  }

  /** A locked tray is opened by force only; otherwise the guest is asked, and QEMU answers as if it had opened. */
  #askTrayOpen(id: string, isForced: boolean): void {
    if (this.#isLocked && this.inserted.has(id) && !isForced) return;
    this.#moveTray(id, true);
  }

  #requireOpen(id: string): void {
    if (!this.#openTrays.has(id)) throw new Refusal(`Tray of device '${id}' is not open`);
  }

  #addDevice(args: Arguments): void {
    const id = text(args, 'id');
    if (this.devices.has(id)) throw new Refusal(`Duplicate device ID '${id}'`);
    if (!this.nodes.has(text(args, 'drive'))) throw new Refusal(`Property 'drive' can't find value`);
    this.devices.add(id);
    this.#properties.set(id, args);
  }

  #deleteDevice(id: string): void {
    if (!this.devices.has(id)) throw new Refusal(`Device '${id}' not found`, 'DeviceNotFound');
    const isPci = !this.#isRemovable(id);
    if (!isPci || this.#options.holdsDevices !== true) setImmediate(() => this.#forgetDevice(id));
  }

  #isRemovable(id: string): boolean {
    return /^(scsi-cd|usb-storage)$/.test(String(this.#properties.get(id)?.driver));
  }

  #forgetDevice(id: string): void {
    this.devices.delete(id);
    this.#properties.delete(id);
    this.emit('DEVICE_DELETED', { path: `/machine/peripheral/${id}/virtio-backend` });
    this.emit('DEVICE_DELETED', { device: id, path: `/machine/peripheral/${id}` });
  }

  #queryBlock(): unknown {
    const devices = [...this.#properties].map(([id, { drive }]) => {
      const removable = this.#isRemovable(id);
      const tray = removable ? { tray_open: this.#openTrays.has(id) } : {};
      const locked = removable && this.#isLocked;
      return { device: '', qdev: id, removable, locked, ...tray, inserted: { 'node-name': drive } };
    });
    const trays = (this.#options.trays ?? []).map((tray) => {
      const node = this.inserted.get(tray);
      const locked = node !== undefined && this.#isLocked;
      const state = { removable: true, locked, tray_open: this.#openTrays.has(tray) };
      const inserted = node === undefined ? {} : { inserted: { 'node-name': node } };
      return { device: '', qdev: `/machine/peripheral/${tray}`, ...state, ...inserted };
    });
    const disks = [...this.#disks].map(([id, node]) => {
      const inserted = { 'node-name': node };
      return {
        device: '',
        qdev: `/machine/peripheral/${id}/virtio-backend`,
        removable: false,
        locked: false,
        inserted,
      };
    });
    return [...devices, ...trays, ...disks];
  }

  #listObjects(path: string): unknown {
    const { ports = [], scsiBuses = [], usbBuses = [], trays = [] } = this.#options;
    const port = ports.find((id) => path === `/machine/peripheral/${id}`);
    if (port !== undefined) return [{ name: port, type: 'child<PCIE>' }];
    if (ports.some((id) => path === `/machine/peripheral/${id}/${id}`)) return this.#devicesOn(path);
    const ownerOf = (bus: string) => `/machine/peripheral/${bus.replace(/\.\d+$/, '')}`;
    const scsiBus = scsiBuses.find((bus) => path === `${ownerOf(bus)}/virtio-backend`);
    if (scsiBus !== undefined) return [{ name: scsiBus, type: 'child<SCSI>' }];
    const usbBus = usbBuses.find((bus) => path === ownerOf(bus));
    if (usbBus !== undefined) return [{ name: usbBus, type: 'child<usb-bus>' }];
    if (path === '/machine/peripheral-anon') return [];
    if (path !== '/machine/peripheral') throw new Refusal(`Device '${path}' not found`, 'DeviceNotFound');
    const agent = { name: PORT_ID, type: 'child<virtserialport>' };
    const cds = trays.map((name) => ({ name, type: 'child<ide-cd>' }));
    return [agent, ...cds, ...[...this.devices].map((name) => ({ name, type: 'child<virtio-blk-pci>' }))];
  }

  #devicesOn(path: string): unknown {
    const found = [...this.#properties.values()].filter(({ bus }) => path.endsWith(`/${String(bus)}`));
    const devices = found.map((_, index) => ({ name: `child[${index}]`, type: 'link<virtio-blk-pci>' }));
    return [{ name: 'hotplug-handler', type: 'link<hotplug-handler>' }, ...devices];
  }

  #getProperty(path: string, property: string): string {
    if (property === 'name') return 'dev.pratique.agent.0';
    if (property === 'chardev') return 'pratique-channel';
    const on = [...this.#properties].filter(([, { bus }]) => path.endsWith(`/${String(bus)}`));
    return `/machine/peripheral/${on[0]?.[0] ?? ''}`;
  }

  #infoNetwork(): string {
    return this.#options.nics
      .map(({ id, tap, backend = 'tap' }, index) => {
        const peer =
          backend === 'tap' ? `index=0,type=tap,ifname=${tap},script=no,downscript=no` : `index=0,type=${backend}`;
        return `${id}: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01\r\n \\ net${index}: ${peer}\r\n`;
      })
      .join('');
  }

  #write(message: unknown): void {
    this.#monitors[0]?.write(`${JSON.stringify(message)}\r\n`);
  }
}

function text(args: Arguments, name: string): string {
  const value = args[name];
  if (typeof value !== 'string') throw new Refusal(`Parameter '${name}' is missing`);
  return value;
}

function fileOf(node: Arguments): string {
  const file = node.file;
  if (typeof file !== 'object' || file === null) return '';
  // The cast holds for what our own client sends.
  const { filename, server, export: name } = file as { filename?: string; server?: { path: string }; export?: string };
  return server === undefined ? (filename ?? '') : `nbd+unix:///${name}?socket=${server.path}`;
}
