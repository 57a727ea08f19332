// What must work in a guest before it is plugged in, in the words of a policy: `service:nginx.service`, `port:80`, `bundle:shop`.
import { type Static, Type } from 'typebox';
import { FREE_TEXT_CHARS_MAX, HEALTH_CHECKS_MAX } from '../base/limits.ts';

/** A service of the guest's init system that is up, a TCP port that answers on loopback, the `check` entry of an installed bundle. */
export const HEALTH_CHECK_PATTERN =
  '^(service:[A-Za-z0-9][A-Za-z0-9@:._\\\\-]{0,199}|port:[1-9][0-9]{0,4}|bundle:[A-Za-z0-9][A-Za-z0-9@._+~-]{0,199})$';

export const HealthCheckSchema = Type.String({ maxLength: 208, pattern: HEALTH_CHECK_PATTERN });
export const HealthChecksSchema = Type.Array(HealthCheckSchema, { maxItems: HEALTH_CHECKS_MAX });

/** What the guest says of one check. */
export const HealthResultSchema = Type.Object(
  {
    check: HealthCheckSchema,
    isHealthy: Type.Boolean(),
    /** Why not, for people. */
    detail: Type.Optional(Type.String({ maxLength: FREE_TEXT_CHARS_MAX })),
  },
  { additionalProperties: false },
);
export type HealthResult = Static<typeof HealthResultSchema>;
