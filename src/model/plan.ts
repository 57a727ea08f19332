// What one run will install, and the manifest that tells the guest.
import { type Static, Type } from 'typebox';
import { digestOf } from '../base/digest.ts';
import { canonicalJson, type Digest } from '../base/digest-text.ts';
import { NAME_CHARS_MAX, PLAN_ITEMS_MAX } from '../base/limits.ts';
import { configItemId, PlanConfigRemovedSchema, PlanConfigsSchema } from './guest-config.ts';
import { RunIdSchema, VmIdSchema } from './ids.ts';
import { LeftOutSchema, ReleaseSchema } from './release.ts';

const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });

export const PlanItemSchema = Type.Object(
  {
    /** Unique in the plan: `<ecosystem>/<product>[:arch]`. */
    id: name,
    /** The installed version, null when the product is new to the VM. */
    fromVersion: Type.Union([name, Type.Null()]),
    release: ReleaseSchema,
  },
  { additionalProperties: false },
);
export type PlanItem = Static<typeof PlanItemSchema>;

export const PlanSchema = Type.Object(
  {
    vm: VmIdSchema,
    run: RunIdSchema,
    items: Type.Array(PlanItemSchema, { maxItems: PLAN_ITEMS_MAX }),
    /** Configuration that is not applied yet in this version, or was changed in the guest; absent where there is none. */
    config: Type.Optional(PlanConfigsSchema),
    /** Applied configuration that this host has no longer; absent where there is none. */
    configRemoved: Type.Optional(PlanConfigRemovedSchema),
    /** Newer versions that this plan does without, each with its reason. */
    leftOut: Type.Array(LeftOutSchema, { maxItems: PLAN_ITEMS_MAX }),
    /** Vendors asked, and the age of their verified metadata when the plan was made, for the record. */
    vendors: Type.Array(
      Type.Object(
        { vendor: name, checkedAtMs: Type.Integer(), fresh: Type.Boolean() },
        { additionalProperties: false },
      ),
      { maxItems: 100 },
    ),
  },
  { additionalProperties: false },
);
export type Plan = Static<typeof PlanSchema>;

/** The digest that evidence and confirmation bind; an empty plan has one too, and it differs per run. */
export function planDigest(plan: Plan): Digest {
  return digestOf(canonicalJson(plan));
}

/** Bytes to download at most for a plan. */
export function planSizeBytes(plan: Plan): number {
  return plan.items.reduce((sum, item) => sum + item.release.artifact.sizeBytes, 0);
}

/** What a plan does beside its updates, by the ids of its results: items that are applied, then items that are taken back. */
export function configIdsOf({ config = [], configRemoved = [] }: Plan): readonly string[] {
  return [...config, ...configRemoved].map(({ item }) => configItemId(item));
}

/** Everything a plan has to do; with nothing to do no drive is made. */
export function planStepCount(plan: Plan): number {
  return plan.items.length + configIdsOf(plan).length;
}
