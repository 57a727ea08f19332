// The routes of licenses, seats and their use.
import { Type } from 'typebox';
import { VM_ID_PATTERN } from '../src/model/ids.ts';
import { LicenseIdSchema } from '../src/model/license.ts';
import type { Api, RouteParts } from './http-api.ts';
import { LicenseActorSchema, LicenseDefinitionSchema, TenantSchema, TokenSchema } from './licenses-schemas.ts';
import type { LicenseService } from './licenses-service.ts';

const strict = { additionalProperties: false } as const;
const licenseParams = Type.Object({ license: LicenseIdSchema }, strict);
const vmName = Type.String({ pattern: VM_ID_PATTERN });
const actor = LicenseActorSchema;

/** Adds them. No answer has a token in it: its schema has no place for one. */
export function addLicenseRoutes(app: Api, service: LicenseService, parts: RouteParts): void {
  addReading(app, service, parts);
  addChanging(app, service, parts);
}

function addReading(app: Api, service: LicenseService, { answers, listOf, refTo }: RouteParts): void {
  const all = answers(200, listOf('licenses', 'License'), 'The licenses');
  app.get('/v1/licenses', { schema: { summary: 'All licenses', response: all } }, async () => ({
    licenses: await service.listLicenses(),
  }));
  const one = answers(200, refTo('License'), 'The license; never its token');
  app.get(
    '/v1/licenses/:license',
    { schema: { summary: 'One license', params: licenseParams, response: one } },
    async ({ params }) => service.showLicense(params.license),
  );
  app.post(
    '/v1/licenses/check',
    {
      schema: {
        summary: 'Ask the server of one license, or of all, now',
        body: Type.Object({ license: Type.Union([LicenseIdSchema, Type.Null()]) }, strict),
        response: all,
      },
    },
    async ({ body }) => ({ licenses: await service.checkLicenses(body.license) }),
  );
  app.get(
    '/v1/leases',
    {
      schema: {
        summary: 'Which VM holds which seat',
        querystring: Type.Object({ vm: Type.Optional(vmName), license: Type.Optional(LicenseIdSchema) }, strict),
        response: answers(200, listOf('leases', 'Lease'), 'The leases'),
      },
    },
    async ({ query }) => ({ leases: await service.leases(query) }),
  );
  app.get(
    '/v1/license-use',
    {
      schema: {
        summary: 'What licenses were used for, by tenant',
        querystring: Type.Object(
          {
            tenant: Type.Optional(TenantSchema),
            since: Type.Integer({ minimum: 0, description: 'Milliseconds since 1970-01-01 UTC' }),
          },
          strict,
        ),
        response: answers(200, listOf('use', 'LicenseUse'), 'Seat-hours, fetches and bytes of each VM'),
      },
    },
    async ({ query: { tenant, since } }) => ({
      use: await service.licenseUse({ sinceMs: since, ...(tenant === undefined ? {} : { tenant }) }),
    }),
  );
}

function addChanging(app: Api, service: LicenseService, { answers, listOf, refTo, problems }: RouteParts): void {
  const view = answers(200, refTo('License'), 'The license as it is now; never its token');
  const { properties } = LicenseDefinitionSchema;
  const added = Type.Object(
    { ...properties, token: TokenSchema, isUnchecked: Type.Optional(Type.Boolean()), actor },
    strict,
  );
  app.post(
    '/v1/licenses',
    {
      schema: {
        summary: 'Add a license; its server is asked first',
        body: added,
        response: answers(201, refTo('License'), 'The new license; never its token'),
      },
    },
    async ({ body: { token, isUnchecked = false, actor: who, ...definition } }, reply) =>
      reply.code(201).send(await service.addLicense(definition, { token, isUnchecked, actor: who })),
  );
  app.post(
    '/v1/licenses/:license/rotate',
    {
      schema: {
        summary: 'Give a license a new token, which is tried before the old one is gone',
        params: licenseParams,
        body: Type.Object({ token: TokenSchema, actor }, strict),
        response: view,
      },
    },
    async ({ params, body }) => service.rotateLicense(params.license, body),
  );
  const reason = Type.String({ minLength: 1, maxLength: 1000, pattern: '\\S' });
  app.post(
    '/v1/licenses/:license/revoke',
    {
      schema: {
        summary: 'Use a license no more on this host, from now on (audited)',
        params: licenseParams,
        body: Type.Object({ reason, actor }, strict),
        response: view,
      },
    },
    async ({ params, body }) => service.revokeLicense(params.license, body),
  );
  app.post(
    '/v1/licenses/:license/remove',
    {
      schema: {
        summary: 'Give the seats of a license back and forget it',
        params: licenseParams,
        body: Type.Object({ isForced: Type.Boolean(), actor }, strict),
        response: { 204: { description: 'Forgotten', type: 'null' }, ...problems },
      },
    },
    async ({ params, body }, reply) => {
      await service.removeLicense(params.license, body);
      return await reply.code(204).send();
    },
  );
  app.post(
    '/v1/vms/:vm/release-seats',
    {
      schema: {
        summary: 'Give back the seats of a VM',
        params: Type.Object({ vm: vmName }, strict),
        body: Type.Object({ actor }, strict),
        response: answers(200, listOf('leases', 'Lease'), 'What its servers have not taken back yet'),
      },
    },
    async ({ params, body }) => ({ leases: await service.releaseSeats(params.vm, body) }),
  );
}
