// Everything that can happen in a life: what operators ask for, and what goes wrong. Each is one small act on the world.
import { PratiqueError } from '../../src/base/errors.ts';
import { RunError } from '../../src/update/runner.ts';
import type { Behaviour } from './guest.ts';
import { beginEpoch } from './machine.ts';
import type { Random } from './random.ts';
import { publish as publishVersion } from './rooms.ts';
import type { FullRoom, SimVm, World } from './world.ts';

/** Does it; false where it has no place now. */
type OnVm = (world: World, vm: SimVm, random: Random) => boolean | Promise<boolean>;
type OnHost = (world: World, random: Random) => boolean | Promise<boolean>;

type Act = { readonly weight: number; readonly isOperator?: true } & (
  | { readonly on: 'vm'; readonly act: OnVm }
  | { readonly on: 'host'; readonly act: OnHost }
);

const operator = (weight: number, act: OnVm): Act => ({ weight, isOperator: true, on: 'vm', act });
const ofVm = (weight: number, act: OnVm): Act => ({ weight, on: 'vm', act });
const ofHost = (weight: number, act: OnHost): Act => ({ weight, on: 'host', act });

/** Asks the service, not waiting for its answer. What it refuses with an error of ours is an answer. */
export function ask(
  world: World,
  what: string,
  work: (service: NonNullable<World['daemon']>['service']) => Promise<unknown>,
): boolean {
  const { daemon } = world;
  if (daemon === null || !daemon.isReady || daemon.isClosing) return false;
  world.say(`operator: ${what}`);
  work(daemon.service).catch((error: unknown) => {
    if (daemon.isDead || error instanceof RunError || error instanceof PratiqueError) return;
    world.complain(`the operator's ${what} failed with ${error instanceof Error ? error.message : String(error)}`);
  });
  return true;
}

const startVm: OnVm = (world, { vm, isAdded }) => isAdded && ask(world, `start ${vm}`, (host) => host.startVm(vm));
const retryVm: OnVm = (world, { vm, failed }) => {
  failed.clear();
  return ask(world, `retry ${vm}`, (host) => host.retryVm(vm));
};
const updateVm: OnVm = (world, { vm, failed }) => {
  failed.clear();
  return ask(world, `update ${vm}`, (host) => host.updateVm(vm));
};

/** Adds a VM, as it is in the world, to the host. */
export function addVm(world: World, each: SimVm): boolean {
  const { vm, spec, policy } = each;
  if (each.isAdded || each.isLeaving) return false;
  return ask(world, `add ${vm}`, async (host) => {
    await host.addVm(spec, policy).catch((error: unknown) => {
      each.isAdded = world.daemon?.runOf(vm) != null;
      throw error;
    });
    each.isAdded = true;
  });
}

/** Removes a VM that is off, and looks whether anything of it stays. */
export function removeVm(world: World, each: SimVm): boolean {
  const { vm } = each;
  if (!each.isAdded || each.isLeaving) return false;
  return ask(world, `remove ${vm}`, async (host) => {
    each.isLeaving = true;
    const { daemon } = world;
    try {
      await host.removeVm(vm);
    } finally {
      each.isLeaving = false;
      if (daemon?.isDead === false) each.isAdded = daemon.runOf(vm) !== null;
    }
    if (daemon?.isDead === false) checkGone(world, each);
  });
}

/** Nothing that belonged to a VM stays once it is removed. */
export function checkGone(world: World, { vm, machine, failed }: SimVm): void {
  failed.clear();
  const { files, kernel, daemon } = world;
  const pins = [...files.pins.keys()].filter((owner) => owner.endsWith(`:${vm}`));
  if (pins.length > 0) world.complain(`blobs stay pinned for ${vm}, which is removed`);
  if ([...files.drives.keys()].some((path) => path.includes(`/${vm}/`)))
    world.complain(`a drive folder of ${vm} stays, which is removed`);
  if (machine.overlay !== null) world.complain(`an overlay of ${vm} stays, which is removed`);
  const isFenced = machine.taps.some((tap) => kernel.gated.has(tap) || kernel.admitted.has(tap));
  if (isFenced && machine.spec.kind === 'attached')
    world.complain(`the fence still knows the tap of ${vm}, which is removed`);
  const { journal, inventories } = daemon?.rooms ?? {};
  const rows = journal?.load().some((stored) => stored.vm === vm) === true || inventories?.last(vm) != null;
  const failures = journal?.failedUpdates(vm).length ?? 0;
  if (rows || failures > 0) world.complain(`the database still knows ${vm}, which is removed`);
}

function changePolicy(world: World, each: SimVm, random: Random): boolean {
  const { vm, spec } = each;
  const set = random.pick<SimVm['policy']>([
    [3, spec.kind === 'managed' ? { overlay: random.chance(0.5) } : { allowReboot: true }],
    [2, { allowReboot: random.chance(0.5) }],
    [1, { infrastructure: random.chance(0.5) }],
    [1, { vendorAway: random.chance(0.5) ? 'admit' : 'gate' }],
    [1, { leftOut: random.chance(0.5) ? 'admit' : 'gate' }],
    [1, { metadataAgeMaxMs: random.between(1, 48) * 3_600_000 }],
    [1, { runDeadlineMs: random.between(1, 240) * 60_000 }],
    [1, { holds: random.chance(0.5) ? ['hello'] : [] }],
  ]);
  return ask(world, `set ${vm} ${Object.keys(set).join()}`, async (host) => {
    await host.setVmPolicy(vm, { set, unset: [], actor: 'op' });
    each.policy = { ...each.policy, ...set };
  });
}

const changeGuest: OnVm = (world, { vm, guest, wire }, random) => {
  const behaviour = random.pick<Behaviour>([
    [8, 'honest'],
    [1, 'forges'],
    [1, 'hides'],
    [1, 'fails'],
    [2, 'forgetful'],
    [1, 'silent'],
    [1, 'clings'],
    [1, 'slow'],
  ]);
  guest.behaviour = behaviour;
  wire.isMute = behaviour === 'silent';
  world.say(`${vm} the guest is now ${behaviour}`);
  return behaviour !== 'honest';
};

const kexec: OnVm = (world, { vm, machine, guest }) => {
  if (!machine.exists || machine.isStopped) return false;
  world.say(`${vm} the guest starts another kernel`);
  beginEpoch(machine, world.clock.monotonicMs(), true);
  guest.kexec();
  return true;
};

const loseMonitor: OnVm = (world, { vm, machine }) => {
  if (!machine.exists || world.daemon === null || machine.isMonitorLost) return false;
  world.say(`${vm} the monitor is lost`);
  machine.isMonitorLost = true;
  machine.listener?.({ kind: 'monitor-lost', detail: 'it is gone' });
  return true;
};

const fillGuestDisk: OnVm = (world, { vm, machine }) => {
  if (!machine.exists || machine.isMonitorLost || machine.listener === null) return false;
  world.say(`${vm} a write of the guest finds no space`);
  machine.listener({ kind: 'disk-full' });
  return true;
};

/** Lines that no agent writes: garbage, too long, too deep, too many. */
const speakNonsense: OnVm = (world, { vm, guest, wire }, random) => {
  if (!guest.isUp()) return false;
  const line = random.pick<string>([
    [3, 'not JSON at all\n'],
    [2, `{"type":"hello","boot":1}\n`],
    [2, `${'['.repeat(5_000)}\n`],
    [2, `{"type":"confirm","nonce":"${'0'.repeat(32)}","constructor":1}\n`],
    [1, '\u0000\uffff\n'],
  ]);
  world.say(`${vm} the guest writes what is no message`);
  wire.inject(line);
  return true;
};
const speakTooLong: OnVm = (world, { vm, guest, wire }, random) => {
  if (!guest.isUp()) return false;
  world.say(`${vm} the guest writes a line that is too long`);
  wire.inject(`${'x'.repeat(random.between(16_380, 60_000))}\n`);
  return true;
};

const flood: OnVm = (world, { vm, guest, wire }, random) => {
  if (!guest.isUp()) return false;
  const isHello = random.chance(0.5);
  world.say(`${vm} the guest floods the channel with ${isHello ? 'hellos' : 'garbage'}`);
  const hello = `{"type":"hello","protocols":[1],"boot":"${guest.boot()}","seq":0,"agent":{"version":"1.0.0"}}\n`;
  for (let line = 0; line < 80; line += 1) wire.inject(isHello ? hello : 'x\n');
  return true;
};

function toggleFull(world: World, room: FullRoom): boolean {
  if (world.full.has(room)) world.full.delete(room);
  else world.full.add(room);
  world.wellSinceMs = world.clock.monotonicMs();
  world.say(`the disk of the ${room} is ${world.full.has(room) ? 'full' : 'well'}`);
  return world.full.has(room);
}

type ServerFlag = 'isDown' | 'isSlow' | 'isStale' | 'givesWrongBytes' | 'withdraws';
const toggleServer =
  (flag: ServerFlag): OnHost =>
  (world) => {
    world.server[flag] = !world.server[flag];
    world.say(`the vendor: ${flag} ${world.server[flag]}`);
    return world.server[flag];
  };

const publish: OnHost = (world, random) => {
  const products = [...world.server.newest.keys()].filter((product) => product !== 'late');
  const product = products[random.between(0, products.length - 1)];
  if (product === undefined) return false;
  const version = (world.server.newest.get(product) ?? 0) + 1;
  publishVersion(world.server, product, version);
  world.say(`the vendor publishes ${product} ${version}`);
  return true;
};

const rot: OnHost = (world, random) => {
  const blobs = [...world.files.blobs.values()];
  const blob = blobs[random.between(0, blobs.length - 1)];
  if (blob === undefined) return false;
  blob.isSound = false;
  world.say('a stored blob rots');
  return true;
};

const changeFence: OnHost = (world, random) => {
  const taps = [...world.kernel.admitted];
  const tap = taps[random.between(0, taps.length - 1)];
  const isFlush = random.chance(0.5) || tap === undefined;
  if (isFlush && !world.kernel.hasTable) return false;
  if (isFlush) {
    world.kernel.hasTable = false;
    world.kernel.admitted.clear();
    world.kernel.gated.clear();
  } else world.kernel.admitted.delete(tap);
  world.wellSinceMs = world.clock.monotonicMs();
  world.say(`somebody ${isFlush ? 'flushes the rules' : 'takes a tap out of the fence'}`);
  return true;
};

const stopService: OnHost = (world) => {
  const { daemon } = world;
  if (daemon === null || !daemon.isReady || daemon.isClosing) return false;
  world.say('the daemon is asked to end');
  void daemon.close().then(async () => {
    if (world.daemon === daemon) await world.crash('kill');
  });
  return true;
};

/** Every act by its name. The names stand in stories, in the table of coverage and in --without. */
export const ACTS = {
  start: operator(9, startVm),
  stop: operator(2, (world, { vm }) => ask(world, `stop ${vm}`, (host) => host.stopVm(vm, { force: false }))),
  'stop-force': operator(1, (world, { vm }) =>
    ask(world, `stop ${vm} by force`, (host) => host.stopVm(vm, { force: true })),
  ),
  retry: operator(3, retryVm),
  update: operator(3, updateVm),
  admit: operator(1, (world, { vm }) =>
    ask(world, `admit ${vm}`, (host) => host.admitVm(vm, { reason: 'by hand', actor: 'op' })),
  ),
  remove: operator(2, (world, vm) => removeVm(world, vm)),
  add: operator(4, (world, vm) => addVm(world, vm)),
  policy: operator(2, changePolicy),
  'daemon-killed': ofHost(3, async (world) => {
    if (world.daemon === null) return false;
    await world.crash('kill');
    return true;
  }),
  'daemon-stopped': ofHost(1, stopService),
  'power-cut': ofHost(1, async (world) => {
    await world.crash('power-cut');
    return true;
  }),
  'slow-disk': ofHost(1, (world) => {
    world.isDiskSlow = !world.isDiskSlow;
    world.say(`the disk is ${world.isDiskSlow ? 'slow' : 'as fast as before'}`);
    return world.isDiskSlow;
  }),
  'journal-full': ofHost(1, (world) => toggleFull(world, 'journal')),
  'audit-full': ofHost(1, (world) => toggleFull(world, 'audit')),
  'store-full': ofHost(1, (world) => toggleFull(world, 'store')),
  'drive-full': ofHost(1, (world) => toggleFull(world, 'drive')),
  'vendor-down': ofHost(1, toggleServer('isDown')),
  'vendor-slow': ofHost(1, toggleServer('isSlow')),
  'vendor-stale': ofHost(1, toggleServer('isStale')),
  'vendor-wrong-bytes': ofHost(1, toggleServer('givesWrongBytes')),
  'vendor-withdraws': ofHost(1, toggleServer('withdraws')),
  publish: ofHost(3, publish),
  'blob-rot': ofHost(1, rot),
  'clock-jump': ofHost(1, (world, random) => {
    const ms = random.pick([
      [2, random.between(-7_200_000, 7_200_000)],
      [1, random.between(-40, 40) * 86_400_000],
    ]);
    world.clock.jump(ms);
    world.say(`the clock jumps by ${Math.round(ms / 1000)} s`);
    return true;
  }),
  'fence-changed': ofHost(1, changeFence),
  'qemu-dies': ofVm(2, (world, vm) => world.endQemu(vm, false)),
  'guest-powers-off': ofVm(1, (world, vm) => world.endQemu(vm, true)),
  'guest-resets': ofVm(3, (world, vm) => world.resetGuest(vm)),
  kexec: ofVm(2, kexec),
  'monitor-lost': ofVm(1, loseMonitor),
  'guest-disk-full': ofVm(1, fillGuestDisk),
  'foreign-start': ofVm(3, (world, vm, random) => world.startForeign(vm, random.chance(0.6))),
  behaviour: ofVm(3, changeGuest),
  'agent-restarts': ofVm(3, (_, { guest }) => {
    const wasUp = guest.isUp();
    guest.restartAgent();
    return wasUp;
  }),
  'lossy-channel': ofVm(2, (world, { vm, wire }) => {
    wire.isLossy = !wire.isLossy;
    world.say(`${vm} its channel is ${wire.isLossy ? 'lossy' : 'sound'}`);
    return wire.isLossy;
  }),
  'channel-cut': ofVm(1, (world, { vm, wire, guest }) => {
    world.say(`${vm} the channel is cut`);
    wire.hangUp();
    return guest.isUp();
  }),
  forged: ofVm(3, (_, { guest }) => guest.forge()),
  replayed: ofVm(2, (_, { wire, guest }, random) => {
    let isDone = false;
    for (let line = random.between(1, 5); line > 0 && guest.isUp(); line -= 1) isDone = wire.replay() || isDone;
    return isDone;
  }),
  'old-session': ofVm(2, (_, { guest }) => guest.speakFromThePast()),
  malformed: ofVm(1, speakNonsense),
  oversized: ofVm(1, speakTooLong),
  flood: ofVm(1, flood),
} as const satisfies Record<string, Act>;
export type ActName = keyof typeof ACTS;
// The cast holds: these are the keys of the table above.
export const ACT_NAMES = Object.keys(ACTS) as readonly ActName[];

/** What stays on in every life: without them nothing would ever run. */
export const ALWAYS: ReadonlySet<ActName> = new Set([
  'start',
  'stop',
  'retry',
  'update',
  'add',
  'publish',
  'foreign-start',
]);

/** Does one act to a VM, or to the host. */
export async function perform(world: World, name: ActName, vm: SimVm, random: Random): Promise<void> {
  const act: Act = ACTS[name];
  // The state before the act is the one that it met; an act that had no place is not counted.
  const meetings = world.meetings(name, act.on === 'vm' ? vm.vm : null);
  const isDone = act.on === 'vm' ? await act.act(world, vm, random) : await act.act(world, random);
  if (isDone) world.count(meetings);
}
