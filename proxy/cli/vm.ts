// pratique vm …: the VMs of this host.
import { type Command, Option } from 'commander';
import { EXIT_FAILED, EXIT_QUARANTINED } from '../../src/base/errors.ts';
import type { Policy } from '../../src/model/policy.ts';
import { RUN_STATES, type RunStateName, type Service, type VmEventRecord, type VmView, type Why } from '../service.ts';
import { actorOf } from './actor.ts';
import { type Build, type Context, completeCommand } from './context.ts';
import { durationText, parseDuration, wholeNumber } from './text.ts';

// The texts are loaded when they are printed: `--help` and the quiet commands do without.
const texts = async () => await import('./vm-text.ts');

type AddOptions = {
  readonly group?: string;
  readonly tenant?: string;
  readonly install?: Policy['install'];
  readonly package?: readonly string[];
  readonly hold?: readonly string[];
  readonly reboot: boolean;
  readonly infrastructure?: boolean;
  readonly vendor?: readonly string[];
  readonly metadataAge?: string;
  readonly vendorAway?: Policy['vendorAway'];
  readonly leftOut?: Policy['leftOut'];
  readonly apt?: Policy['apt'];
  readonly verify?: Policy['verify'];
  readonly overlay?: boolean;
  readonly configChange?: Policy['configChange'];
  readonly inspectDisk: boolean;
  readonly health?: readonly string[];
  readonly healthTimeout?: string;
  readonly runDeadline?: string;
  readonly qmp?: string;
  readonly channel?: string;
  readonly tap?: readonly string[];
  readonly drivePort?: string;
  readonly netns?: string;
};
type WaitOptions = { readonly for: RunStateName; readonly timeout: string; readonly quiet?: boolean };
type EventOptions = { readonly follow?: boolean; readonly after: string; readonly limit: string };

const PAGE_EVENTS = 1_000;

/** Adds `pratique vm` and its verbs. */
export function addVmCommands(program: Command, build: Build): void {
  const vm = program.command('vm').description('virtual machines');
  addAdd(vm, build);
  addReadingCommands(vm, build);
  addPolicyCommands(vm, build);
  addInspect(vm, build);
  addActingCommands(vm, build);
  addEventCommands(vm, build);
}

function addAdd(vm: Command, build: Build): void {
  const command = vm
    .command('add')
    .description('take a VM under the gate: from a spec file, or one that runs already (--qmp, --channel, --tap)')
    .argument('<spec-or-name>', 'spec file (TOML or JSON), or the name of a running VM')
    .option('--tenant <name>', 'whom it belongs to: seats and use of licenses are metered by it')
    .optionsGroup('Policy of this VM alone; the rest comes from its group and the default (docs/policy.md):')
    .option('--group <name>', 'group of the configuration')
    .addOption(new Option('--install <which>', 'what a run installs').choices(['all', 'security', 'listed', 'none']))
    .option('--package <name...>', 'with --install listed: products, or beginnings such as linux-image-*')
    .option('--hold <name...>', 'products that stay at their version')
    .option('--no-reboot', 'never reboot the guest for an update')
    .option('--infrastructure', 'plug in unchecked (audited) when no vendor can be reached: for a router or DNS server')
    .option('--vendor <name...>', 'ask only these vendors')
    .option('--metadata-age <duration>', 'how old verified vendor metadata may be: 24h')
    .addOption(new Option('--vendor-away <do>', 'when it is older and the vendor is away').choices(['gate', 'admit']))
    .addOption(new Option('--left-out <do>', 'when a security update cannot be installed').choices(['gate', 'admit']))
    .addOption(
      new Option('--apt <trust>', 'how Debian packages are trusted in the guest').choices(['fast', 'vendor-verified']),
    )
    .addOption(
      new Option('--verify <by>', "what a confirmation is held against; disk: also the VM's disk").choices([
        'agent',
        'disk',
      ]),
    )
    .option('--overlay', 'install on a disk overlay that is thrown away if the update fails')
    .addOption(
      new Option('--config-change <how>', 'when a plugged-in VM gets another configuration').choices(['live', 'gate']),
    )
    .option('--no-inspect-disk', 'never look into the disk of the VM')
    .option('--health <check...>', 'what must work before it is plugged in: service:UNIT, port:NUMBER, bundle:PRODUCT')
    .option('--health-timeout <duration>', 'how long a health check is tried again: 30s')
    .option('--run-deadline <duration>', 'how long a run may take: 4h')
    .optionsGroup('A VM that runs already:')
    .option('--qmp <socket>', "unix socket of the running VM's QMP monitor")
    .option('--channel <socket>', "unix socket of the running VM's agent channel")
    .option('--tap <nic=tap...>', "tap of each of the running VM's NICs")
    .option('--drive-port <id>', 'spare pcie-root-port of the running VM')
    .option('--netns <name>', "network namespace of the running VM's taps")
    .optionsGroup('Options:');
  completeCommand<AddOptions>(
    command,
    build,
    'pratique vm add web.toml --install security',
    async (context, [given = ''], options) => {
      const { attachedSpec, readVmSpec } = await import('../spec-file.ts');
      const isAttached = options.qmp !== undefined || options.channel !== undefined || options.tap !== undefined;
      const { config } = await context.loadConfig();
      const spec = isAttached ? attachedSpec(given, options) : await readVmSpec(given, config.network.bridge);
      const service = await context.connect();
      const { parseSettings } = await import('../policy-words.ts');
      const { set, group } = parseSettings(settingsOf(options));
      const { tenant } = options;
      const whose = { ...(typeof group === 'string' ? { group } : {}), ...(tenant === undefined ? {} : { tenant }) };
      const view = await service.addVm(spec, set, whose);
      context.output.done(view, `VM ${view.vm} is under the gate; start it with: pratique vm start ${view.vm}`);
      return undefined;
    },
  );
}

/** The options as `vm set` would have them, so that there is one place that understands values. */
function settingsOf(options: AddOptions): readonly string[] {
  const texts: Readonly<Record<string, string | undefined>> = {
    group: options.group,
    install: options.install,
    packages: options.package?.join(','),
    holds: options.hold?.join(','),
    allowReboot: options.reboot ? undefined : 'false',
    infrastructure: options.infrastructure === true ? 'true' : undefined,
    vendors: options.vendor?.join(','),
    metadataAge: options.metadataAge,
    vendorAway: options.vendorAway,
    leftOut: options.leftOut,
    apt: options.apt,
    verify: options.verify,
    overlay: options.overlay === true ? 'true' : undefined,
    configChange: options.configChange,
    inspectDisk: options.inspectDisk ? undefined : 'false',
    health: options.health?.join(','),
    healthTimeout: options.healthTimeout,
    runDeadline: options.runDeadline,
  };
  return Object.entries(texts).flatMap(([key, text]) => (text === undefined ? [] : [`${key}=${text}`]));
}

function addPolicyCommands(vm: Command, build: Build): void {
  const policy = vm
    .command('policy')
    .description('what holds for a VM, and where each value comes from')
    .argument('<vm>');
  completeCommand(policy, build, 'pratique vm policy web', async ({ output, connect }, [name = '']) => {
    const shown = await (await connect()).vmPolicy(name);
    const { policyText } = await import('./policy-text.ts');
    output.show(shown, () => policyText(shown, output));
    return undefined;
  });
  const set = vm
    .command('set')
    .description(
      'change the policy of one VM (audited): key=value; lists with commas; key= leaves it to group and default',
    )
    .argument('<vm>')
    .argument('<key=value...>', 'keys as in `vm policy`, and group');
  completeCommand(
    set,
    build,
    'pratique vm set web install=security holds=nginx metadataAge=48h overlay=',
    async ({ output, connect, env }, [name = '', ...pairs]) => {
      const { parseSettings } = await import('../policy-words.ts');
      const change = parseSettings(pairs);
      const shown = await (await connect()).setVmPolicy(name, { ...change, actor: actorOf(env) });
      output.done(shown, `The policy of ${name} is changed; see: pratique vm policy ${name}`);
      return undefined;
    },
  );
}

function addReadingCommands(vm: Command, build: Build): void {
  const list = vm.command('list').description('all VMs and their states');
  completeCommand(list, build, 'pratique vm list', async ({ output, connect, clock }) => {
    const vms = await (await connect()).listVms();
    const { vmListText } = await texts();
    output.show({ vms }, () => vmListText(vms, output, clock.nowMs()));
    return undefined;
  });
  const show = vm
    .command('show')
    .description('one VM: state, reason, policy, spec, installed products')
    .argument('<vm>');
  completeCommand(show, build, 'pratique vm show web', async ({ output, connect, clock }, [name = '']) => {
    const shown = await (await connect()).showVm(name);
    const { vmText } = await texts();
    output.show(shown, () => vmText(shown, output, clock.nowMs()));
    return undefined;
  });
  const why = vm
    .command('why')
    .description('why a VM is not plugged in, and what to do next; without a name, for every VM that is not')
    .argument('[vm]');
  completeCommand(why, build, 'pratique vm why web', async ({ output, connect }, [name]) => {
    const service = await connect();
    const reasons = name === undefined ? await reasonsOfAll(service) : [await service.whyVm(name)];
    const { whyText } = await texts();
    output.show(name === undefined ? { vms: reasons } : reasons[0], () => whyText(reasons));
    return undefined;
  });
  const plan = vm.command('plan').description('what would be installed now (changes nothing)').argument('<vm>');
  completeCommand(plan, build, 'pratique vm plan web', async ({ output, connect }, [name = '']) => {
    const planned = await (await connect()).planVm(name);
    const { planText } = await texts();
    output.show(planned, () => planText(planned, output));
    return undefined;
  });
}

function addInspect(vm: Command, build: Build): void {
  const inspect = vm
    .command('inspect')
    .description('what the disk of a VM that is off tells: system, packages, agent (changes nothing on it)')
    .argument('<vm>');
  completeCommand(inspect, build, 'pratique vm inspect web', async ({ output, connect }, [name = '']) => {
    const inspection = await (await connect()).inspectVm(name);
    const { inspectionText } = await import('./inspection-text.ts');
    output.show(inspection, () => inspectionText(inspection, output));
    return undefined;
  });
}

async function reasonsOfAll(service: Service): Promise<readonly Why[]> {
  const vms = await service.listVms();
  return vms.filter(({ gate }) => gate === 'closed').map(({ why }) => why);
}

function addActingCommands(vm: Command, build: Build): void {
  const act = (verb: string, description: string, action: (service: Service, vm: string) => Promise<VmView>) => {
    const command = vm.command(verb).description(description).argument('<vm>');
    completeCommand(command, build, `pratique vm ${verb} web`, async ({ output, connect }, [name = '']) => {
      const view = await action(await connect(), name);
      output.done(view, `VM ${view.vm} is ${view.state}, its gate is ${view.gate}`);
      return undefined;
    });
  };
  act('start', 'start a VM behind the closed gate', (service, name) => service.startVm(name));
  act('retry', 'try again after a quarantine', (service, name) => service.retryVm(name));
  act('update', 'look for updates and install them now; a connected VM stays plugged in', (service, name) =>
    service.updateVm(name),
  );
  const stop = vm
    .command('stop')
    .description('shut a VM down')
    .argument('<vm>')
    .option('--force', 'end it without asking the guest');
  completeCommand<{ readonly force?: boolean }>(
    stop,
    build,
    'pratique vm stop web',
    async ({ output, connect }, [name = ''], { force }) => {
      const view = await (await connect()).stopVm(name, { force: force === true });
      output.done(view, `VM ${view.vm} is ${view.state}`);
      return undefined;
    },
  );
  const admit = vm
    .command('admit')
    .description('plug a VM in without evidence; who did it and why goes into the audit records')
    .argument('<vm>')
    .requiredOption('--reason <text>', 'why this VM may go on the network unchecked');
  completeCommand<{ readonly reason: string }>(
    admit,
    build,
    'pratique vm admit gateway --reason "it routes for this host"',
    async ({ output, connect, env }, [name = ''], { reason }) => {
      const view = await (await connect()).admitVm(name, { reason, actor: actorOf(env) });
      output.done(view, `VM ${view.vm} is plugged in by override`);
      return undefined;
    },
  );
  const remove = vm.command('remove').description('forget a VM; its disks stay').argument('<vm>');
  completeCommand(remove, build, 'pratique vm remove web', async ({ output, connect }, [name = '']) => {
    await (await connect()).removeVm(name);
    output.done({ removed: name }, `VM ${name} is forgotten`);
    return undefined;
  });
}

function addEventCommands(vm: Command, build: Build): void {
  const events = vm
    .command('events')
    .description('what happened to a VM, or to all')
    .argument('[vm]')
    .option('--follow', 'go on with what happens next')
    .option('--after <seq>', 'only events with a greater number', '0')
    .option('--limit <n>', 'at most so many past events', '2000');
  completeCommand<EventOptions>(events, build, 'pratique vm events web --follow', async (context, [name], options) => {
    await showEvents(context, name, options);
    return undefined;
  });
  const wait = vm
    .command('wait')
    .description('block until a VM is in a state: exit 0 then, 4 if it is quarantined, 1 after the timeout')
    .argument('<vm>')
    .addOption(new Option('--for <state>', 'state to wait for').choices([...RUN_STATES]).default('connected'))
    .option('--timeout <duration>', 'how long: 90s, 10m, 1h', '10m')
    .option('-q, --quiet', 'no timeline on stderr');
  completeCommand<WaitOptions>(
    wait,
    build,
    'pratique vm wait web --for connected --timeout 10m',
    async (context, [name = ''], options) => await waitFor(context, name, options),
  );
}

async function showEvents(context: Context, vm: string | undefined, options: EventOptions): Promise<void> {
  const { output, interrupted } = context;
  const service = await context.connect();
  const { eventText } = await texts();
  const only = vm === undefined ? {} : { vm };
  const show = (event: VmEventRecord): void => output.show(event, () => eventText(event, output));
  let afterSeq = wholeNumber('--after', options.after);
  if (options.follow === true) {
    for await (const event of service.followEvents({ ...only, afterSeq, signal: interrupted() })) show(event);
    return;
  }
  let left = wholeNumber('--limit', options.limit);
  while (left > 0) {
    const page = await service.pastEvents({ ...only, afterSeq, limit: Math.min(left, PAGE_EVENTS) });
    for (const event of page) show(event);
    if (page.length === 0) return;
    left -= page.length;
    afterSeq = page.at(-1)?.seq ?? afterSeq;
  }
}

/** Past events are read too, but only the present state decides: an old `connected` is no answer. */
async function waitFor(context: Context, vm: string, options: WaitOptions): Promise<number> {
  const { output, clock, interrupted } = context;
  const timeoutMs = parseDuration(options.timeout);
  const service = await context.connect();
  const stop = new AbortController();
  interrupted().addEventListener('abort', () => stop.abort());
  const cancel = clock.after(timeoutMs, () => stop.abort());
  const { makeTimelinePrinter } = await import('./timeline.ts');
  const printer = options.quiet === true ? null : makeTimelinePrinter(output.stderr, clock, context.env);
  const startedMs = clock.nowMs();
  let why = await service.whyVm(vm);
  // The timeline starts with the present state; what is older belongs to other runs as well.
  printer?.push({ seq: 0, vm: why.vm, atMs: startedMs, kind: 'state', state: why.state, text: why.reason });
  // A VM that is off is staged a moment later, before anybody could see that it was off.
  const isReached = (): boolean => why.state === options.for || (options.for === 'off' && why.state === 'staged');
  const isDecided = (): boolean => isReached() || why.state === 'quarantined';
  try {
    if (!isDecided()) {
      for await (const event of service.followEvents({ vm, afterSeq: 0, signal: stop.signal })) {
        if (event.atMs >= startedMs) printer?.push(event);
        if (event.kind !== 'state' || (event.state !== options.for && event.state !== 'quarantined')) continue;
        why = await service.whyVm(vm);
        if (isDecided()) break;
      }
    }
  } finally {
    cancel();
    printer?.end();
  }
  const { whyText } = await texts();
  output.show(why, () => whyText([why]));
  if (isReached()) return 0;
  if (why.state === 'quarantined') return EXIT_QUARANTINED;
  output.warn(`VM ${vm} is still ${why.state} after ${durationText(timeoutMs)}; see: pratique vm why ${vm}`);
  return EXIT_FAILED;
}
