// The fence as nft commands, and the check that a listed table is exactly that fence. Pure.
import { Type } from 'typebox';
import { canonicalJson } from '../base/digest-text.ts';
import { NFT_ELEMENTS_PER_COMMAND_MAX } from '../base/limits.ts';
import { makeParser } from '../base/parse.ts';

/** Every tap that we make starts with this; the standing rules match it. */
export const TAP_PREFIX = 'pq';
export const FENCE_TABLE = 'bridge pratique';

/**
 * Before ebtables' brouting and everything else of this hook could send a frame another way: the smallest priority that
 * nft accepts on Debian 12 with room to spare.
 */
const PRIORITY = -1000;

type Side = { readonly key: 'iifname' | 'oifname'; readonly target: string; readonly counters: string };
const FROM: Side = { key: 'iifname', target: 'drop_from_guest', counters: 'dropped_from_guest' };
const TO: Side = { key: 'oifname', target: 'drop_to_guest', counters: 'dropped_to_guest' };

/**
 * prerouting sees what a bridge port receives; input also what the bridge keeps for itself without prerouting (link-local
 * groups such as LLDP); forward and output see what would be sent to a port.
 */
const HOOKS = [
  { hook: 'prerouting', side: FROM },
  { hook: 'input', side: FROM },
  { hook: 'forward', side: TO },
  { hook: 'output', side: TO },
] as const;

/** Interface sets: taps of admitted VMs; taps with names of somebody else's choice that are to be fenced all the same. */
export type FenceSet = 'admitted' | 'gated';

/**
 * One nft line, hence one transaction, that makes the fence or makes it right again: there is no moment without rules when
 * it was there before, and admitted taps stay admitted.
 */
export function ensureCommand(): string {
  const sets = ['admitted', 'gated'].map((name) => `add set ${FENCE_TABLE} ${name} { type ifname; }`);
  const sides = [FROM, TO].flatMap((side) => [
    // The counting rule stands apart from the drop: a full set ends its own rule, and the frame must be dropped all the same.
    `add set ${FENCE_TABLE} ${side.counters} { type ifname; size 65535; flags dynamic; }`,
    `add chain ${FENCE_TABLE} ${side.target}`,
    `flush chain ${FENCE_TABLE} ${side.target}`,
    `add rule ${FENCE_TABLE} ${side.target} add @${side.counters} { ${side.key} counter }`,
    `add rule ${FENCE_TABLE} ${side.target} drop`,
  ]);
  const hooks = HOOKS.flatMap(({ hook, side }) => [
    `add chain ${FENCE_TABLE} ${hook} { type filter hook ${hook} priority ${PRIORITY}; policy accept; }`,
    `flush chain ${FENCE_TABLE} ${hook}`,
    `add rule ${FENCE_TABLE} ${hook} ${side.key} "${TAP_PREFIX}*" ${side.key} != @admitted jump ${side.target}`,
    `add rule ${FENCE_TABLE} ${hook} ${side.key} @gated ${side.key} != @admitted jump ${side.target}`,
  ]);
  return [`add table ${FENCE_TABLE}`, ...sets, ...sides, ...hooks].join('; ');
}

/** Removes a table that cannot be mended in place (a base chain of ours with another hook or priority) and makes it anew, in one transaction. */
export function replaceCommand(admitted: readonly string[], gated: readonly string[]): string {
  return [
    `add table ${FENCE_TABLE}`,
    `delete table ${FENCE_TABLE}`,
    ensureCommand(),
    ...addCommands('admitted', admitted),
    ...addCommands('gated', gated),
  ].join('; ');
}

/** Commands that put names into a set; harmless when they are there. */
export function addCommands(set: FenceSet, taps: readonly string[]): readonly string[] {
  return inPieces(taps).map((piece) => `add element ${FENCE_TABLE} ${set} { ${quoted(piece)} }`);
}

/** Commands that take names out of a set; adding first, in the same transaction, makes it harmless when they are not there. */
export function removeCommands(set: FenceSet, taps: readonly string[]): readonly string[] {
  return inPieces(taps).map(
    (piece) =>
      `add element ${FENCE_TABLE} ${set} { ${quoted(piece)} }; delete element ${FENCE_TABLE} ${set} { ${quoted(piece)} }`,
  );
}

/** Starts a new generation of the rule set, so that nft reads counters from the kernel and not from its cache. */
export const REFRESH_COMMAND = removeCommands('gated', ['.pratique']).join('; ');

function quoted(taps: readonly string[]): string {
  return taps.map((tap) => `"${tap}"`).join(', ');
}

function inPieces(taps: readonly string[]): readonly (readonly string[])[] {
  const pieces: string[][] = [];
  for (let start = 0; start < taps.length; start += NFT_ELEMENTS_PER_COMMAND_MAX) {
    pieces.push(taps.slice(start, start + NFT_ELEMENTS_PER_COMMAND_MAX));
  }
  return pieces;
}

const counter = Type.Object({ packets: Type.Number() });
const element = Type.Union([
  Type.String(),
  Type.Object({ elem: Type.Object({ val: Type.String(), counter: Type.Optional(counter) }) }),
]);
const parseListing = makeParser(
  Type.Object({
    nftables: Type.Array(
      Type.Object({
        set: Type.Optional(
          Type.Object({
            name: Type.String(),
            table: Type.String(),
            type: Type.Unknown(),
            elem: Type.Optional(Type.Array(element)),
          }),
        ),
        chain: Type.Optional(
          Type.Object({
            name: Type.String(),
            type: Type.Optional(Type.String()),
            hook: Type.Optional(Type.String()),
            prio: Type.Optional(Type.Number()),
            policy: Type.Optional(Type.String()),
          }),
        ),
        rule: Type.Optional(Type.Object({ chain: Type.String(), expr: Type.Array(Type.Unknown()) })),
      }),
    ),
  }),
  'host-fault/fence-listing',
);

export type FenceListing = {
  readonly admitted: ReadonlySet<string>;
  readonly gated: ReadonlySet<string>;
  readonly droppedFromGuest: ReadonlyMap<string, number>;
  readonly droppedToGuest: ReadonlyMap<string, number>;
  /** What differs from the fence as it has to be; null when nothing does. */
  readonly fault: string | null;
};

type Listed = ReturnType<typeof parseListing>['nftables'];

/** Reads the JSON of `nft -j list table` (or `list set`). Throws PratiqueError `host-fault/fence-listing` on anything else. */
export function readListing(document: unknown): FenceListing {
  const { nftables } = parseListing(document, "nft's listing of the fence");
  return {
    admitted: new Set(elementsOf(nftables, 'admitted').keys()),
    gated: new Set(elementsOf(nftables, 'gated').keys()),
    droppedFromGuest: elementsOf(nftables, FROM.counters),
    droppedToGuest: elementsOf(nftables, TO.counters),
    fault: faultOf(nftables),
  };
}

function elementsOf(listed: Listed, name: string): ReadonlyMap<string, number> {
  const elements = listed.find((entry) => entry.set?.name === name)?.set?.elem ?? [];
  return new Map(
    elements.map((entry) =>
      typeof entry === 'string' ? [entry, 0] : [entry.elem.val, entry.elem.counter?.packets ?? 0],
    ),
  );
}

function faultOf(listed: Listed): string | null {
  for (const name of ['admitted', 'gated', FROM.counters, TO.counters]) {
    if (!listed.some((entry) => entry.set?.name === name && entry.set.type === 'ifname'))
      return `set ${name} is missing`;
  }
  for (const { hook, side } of HOOKS) {
    const chain = listed.find((entry) => entry.chain?.name === hook)?.chain;
    if (chain?.type !== 'filter' || chain.hook !== hook || chain.prio !== PRIORITY)
      return `chain ${hook} is not on its hook`;
    if (rulesOf(listed, hook) !== canonicalJson(guardRules(side))) return `the rules of chain ${hook} differ`;
  }
  for (const side of [FROM, TO]) {
    if (rulesOf(listed, side.target) !== canonicalJson(dropRules(side)))
      return `the rules of chain ${side.target} differ`;
  }
  return null;
}

function rulesOf(listed: Listed, chain: string): string {
  return canonicalJson(listed.filter((entry) => entry.rule?.chain === chain).map((entry) => entry.rule?.expr));
}

function guardRules(side: Side): readonly unknown[] {
  const name = { meta: { key: side.key } };
  return [`${TAP_PREFIX}*`, '@gated'].map((right) => [
    { match: { op: '==', left: name, right } },
    { match: { op: '!=', left: name, right: '@admitted' } },
    { jump: { target: side.target } },
  ]);
}

function dropRules(side: Side): readonly unknown[] {
  const counting = {
    op: 'add',
    elem: { meta: { key: side.key } },
    set: `@${side.counters}`,
    stmt: [{ counter: null }],
  };
  return [[{ set: counting }], [{ drop: null }]];
}
