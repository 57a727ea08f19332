// The HTTP API on the daemon's unix socket: every method of Service as a route with schemas, OpenAPI, and the event stream.
import { readFileSync } from 'node:fs';
import { chmod, chown, readFile } from 'node:fs/promises';
import swagger from '@fastify/swagger';
import { type FastifyInstance, type FastifyTypeProvider, fastify } from 'fastify';
import { type Static, type TProperties, type TSchema, Type } from 'typebox';
import type { Clock } from '../src/base/clock.ts';
import { classifyError, PratiqueError } from '../src/base/errors.ts';
import { API_BODY_BYTES_MAX } from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import { makeCheck, misfitText } from '../src/base/schema-check.ts';
import { VmSpecSchema } from '../src/hypervisor/vm-spec.ts';
import { VM_ID_PATTERN } from '../src/model/ids.ts';
import { PlanSchema } from '../src/model/plan.ts';
import { ReleaseSchema } from '../src/model/release.ts';
import {
  AuditCheckpointSchema,
  AuditEntrySchema,
  AuditLinesSchema,
  AuditReportSchema,
  AuditRotationSchema,
  ClockViewSchema,
  DoctorLineSchema,
  DriftRowSchema,
  InspectionSchema,
  PolicyViewSchema,
  ProblemSchema,
  VendorListedSchema,
  VendorStatusSchema,
  VmConfigSchema,
  VmDetailSchema,
  VmEventSchema,
  VmViewSchema,
  WhySchema,
} from './api-schemas.ts';
import {
  GroupNameSchema,
  PartialPolicySchema,
  PolicyKeySchema,
  VendorConfigSchema,
  VendorNameSchema,
} from './config-schema.ts';
import { serveEvents } from './event-stream.ts';
import { addLicenseRoutes } from './licenses-api.ts';
import { LeaseViewSchema, LicenseUseSchema, LicenseViewSchema, TenantSchema } from './licenses-schemas.ts';
import { ApiError, problemOf } from './problem.ts';
import { ScrubViewSchema } from './scrubbing.ts';
import type { Service } from './service.ts';

export type ApiOptions = { readonly service: Service; readonly log: Log; readonly clock: Clock };

const PAGE_MAX = 10_000;
const PAGE_DEFAULT = 1_000;
const strict = { additionalProperties: false } as const;
const vmParams = Type.Object({ vm: Type.String({ pattern: VM_ID_PATTERN }) }, strict);
const vendorParams = Type.Object({ vendor: VendorNameSchema }, strict);
const page = {
  after: Type.Optional(Type.Integer({ minimum: 0, description: 'Only what has a greater seq' })),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: PAGE_MAX })),
  vm: Type.Optional(Type.String({ pattern: VM_ID_PATTERN })),
};

interface TypeboxProvider extends FastifyTypeProvider {
  readonly validator: this['schema'] extends TSchema ? Static<this['schema']> : unknown;
}
/** What the routes of a room are added to. */
export type Api = FastifyInstance<
  FastifyInstance['server'],
  import('node:http').IncomingMessage,
  import('node:http').ServerResponse,
  FastifyInstance['log'],
  TypeboxProvider
>;

/** The API over a service, not yet listening: for the daemon, for tests and for the OpenAPI document. */
export async function makeHttpApi(options: ApiOptions): Promise<Api> {
  const app = fastify({ bodyLimit: API_BODY_BYTES_MAX, exposeHeadRoutes: false }).withTypeProvider<TypeboxProvider>();
  app.setValidatorCompiler(({ schema, httpPart }) => validatorOf(schema as TSchema, httpPart ?? 'body')); // The cast holds: all our routes give typebox schemas.
  app.setErrorHandler(async (error, request, reply) => {
    const known = asPratiqueError(error);
    const problem = problemOf(known);
    if (classifyError(known).blame === 'ours') options.log.error({ err: known, url: request.url }, 'request failed');
    return await reply.code(problem.status).type('application/problem+json').send(problem);
  });
  app.setNotFoundHandler(async (request) => {
    throw new ApiError('not-found/route', `${request.method} ${request.url.split('?')[0]}: the API has no such route`, {
      next: 'see GET /openapi.json',
    });
  });
  app.addHook('onRequest', async ({ headers }) => {
    if (headers.origin !== undefined) {
      throw new ApiError('refused/browser', 'a request with an Origin header: web pages may not use this API');
    }
  });
  // Without `$id` the document would name its schemas def-0, def-1, …
  const refResolver = { buildLocalReference: (schema: { $id?: unknown }) => String(schema.$id) };
  await app.register(swagger, { openapi: OPENAPI_HEAD, refResolver });
  for (const [name, schema] of Object.entries(NAMED_SCHEMAS)) app.addSchema({ ...schema, $id: name });
  addVmRoutes(app, options.service);
  addReadingRoutes(app, options.service);
  addAuditRoutes(app, options.service);
  addVendorRoutes(app, options.service);
  addLicenseRoutes(app, options.service, { answers, listOf, refTo, problems: PROBLEMS });
  addUpkeepRoutes(app, options.service);
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger());
  const closeStreams = serveEvents(app.server, options);
  app.addHook('preClose', async () => closeStreams());
  return app;
}

/** The OpenAPI 3.1 document as text, as shipped in docs/openapi.json. */
export async function openApiText(app: Api): Promise<string> {
  await app.ready();
  return `${JSON.stringify(app.swagger(), null, 2)}\n`;
}

/**
 * Listens on the socket. The owner may use it and, when root runs the daemon and the machine has a group `pratique`,
 * that group too.
 */
export async function listenOnSocket(app: Api, socketPath: string, uid: number): Promise<void> {
  await app.listen({ path: socketPath });
  const group = uid === 0 ? await groupNumber('pratique') : null;
  if (group !== null) await chown(socketPath, uid, group);
  await chmod(socketPath, group === null ? 0o600 : 0o660);
}

async function groupNumber(name: string): Promise<number | null> {
  const groups = await readFile('/etc/group', 'utf8').catch(() => '');
  const line = groups.split('\n').find((candidate) => candidate.startsWith(`${name}:`));
  const gid = Number(line?.split(':')[2]);
  return Number.isInteger(gid) && line !== undefined ? gid : null;
}

function packageVersion(): string {
  const text = readFileSync(new URL('../package.json', import.meta.url), 'utf8');
  const { version } = JSON.parse(text) as { version: string }; // The cast holds: it is our own package file.
  return version;
}

const OPENAPI_HEAD = {
  openapi: '3.1.0',
  info: {
    title: 'Pratique',
    version: packageVersion(),
    description:
      'The API of the Pratique daemon, on its unix socket. GET /v1/events is also a WebSocket: each text frame is one ' +
      'JSON object, `{"event": …}` or, before the server closes, `{"problem": …}`; resume with `after` set to the last seq seen.',
  },
};

function asPratiqueError(error: unknown): unknown {
  if (error instanceof PratiqueError || !(error instanceof Error)) return error;
  const status = 'statusCode' in error ? Number(error.statusCode) : 500;
  return status < 500 ? new ApiError('usage/request', `the request: ${error.message}`, { cause: error }) : error;
}

function validatorOf(schema: TSchema, part: string): (value: unknown) => { value: unknown } | { error: Error } {
  const check = makeCheck(schema);
  return (received) => {
    const value = part === 'querystring' ? withNumbers(schema, received) : received;
    const found = check(value);
    if (found === null) return { value };
    return { error: new ApiError('usage/request', `the request's ${part}: ${misfitText(found)}`) };
  };
}

/** Query parameters are text; those whose schema is an integer become numbers. */
function withNumbers(schema: TSchema, received: unknown): unknown {
  // The casts hold: query schemas are objects, and fastify parses a query into an object of strings.
  const { properties } = schema as unknown as { readonly properties: TProperties };
  const entries = Object.entries(received as Record<string, unknown>).map(([key, value]) => {
    const type = (properties[key] as { readonly type?: string } | undefined)?.type;
    return [key, type === 'integer' && typeof value === 'string' && /^\d{1,15}$/.test(value) ? Number(value) : value];
  });
  return Object.fromEntries(entries);
}

/** The schemas that have a name in the OpenAPI document; answers refer to them. */
const NAMED_SCHEMAS = {
  AuditCheckpoint: AuditCheckpointSchema,
  AuditEntry: AuditEntrySchema,
  AuditLines: AuditLinesSchema,
  AuditReport: AuditReportSchema,
  AuditRotation: AuditRotationSchema,
  Clock: ClockViewSchema,
  DoctorLine: DoctorLineSchema,
  DriftRow: DriftRowSchema,
  Inspection: InspectionSchema,
  Lease: LeaseViewSchema,
  License: LicenseViewSchema,
  LicenseUse: LicenseUseSchema,
  Plan: PlanSchema,
  Policy: PolicyViewSchema,
  Problem: ProblemSchema,
  Release: ReleaseSchema,
  Scrub: ScrubViewSchema,
  Vendor: VendorListedSchema,
  VendorStatus: VendorStatusSchema,
  Vm: VmViewSchema,
  VmConfig: VmConfigSchema,
  VmDetail: VmDetailSchema,
  VmEvent: VmEventSchema,
  Why: WhySchema,
} as const satisfies Record<string, TSchema>;
type SchemaName = keyof typeof NAMED_SCHEMAS;

const refTo = (name: SchemaName) => ({ $ref: `${name}#` });
const listOf = (name: string, item: SchemaName) => ({
  type: 'object',
  required: [name],
  additionalProperties: false,
  properties: { [name]: { type: 'array', items: refTo(item) } },
});
const PROBLEMS = { '4xx': refTo('Problem'), '5xx': refTo('Problem') };

/** How routes tell what they answer with. */
export type RouteParts = {
  readonly answers: typeof answers;
  readonly listOf: typeof listOf;
  readonly refTo: typeof refTo;
  readonly problems: typeof PROBLEMS;
};

/** Answers of a route: its own, and problems. */
function answers(status: 200 | 201, schema: object, description: string) {
  return { [status]: { description, content: { 'application/json': { schema } } }, ...PROBLEMS };
}

function addVmRoutes(app: Api, service: Service): void {
  const view = answers(200, refTo('Vm'), 'The VM as it is now');
  app.get(
    '/v1/vms',
    { schema: { summary: 'All VMs', response: answers(200, listOf('vms', 'Vm'), 'The VMs') } },
    async () => ({ vms: await service.listVms() }),
  );
  const body = Type.Object(
    {
      spec: VmSpecSchema,
      policy: Type.Optional(PartialPolicySchema),
      group: Type.Optional(GroupNameSchema),
      tenant: Type.Optional(TenantSchema),
    },
    strict,
  );
  const added = answers(201, refTo('Vm'), 'The new VM');
  app.post('/v1/vms', { schema: { summary: 'Add a VM', body, response: added } }, async (request, reply) => {
    const { spec, policy = {}, group, tenant } = request.body;
    const given = { ...(group === undefined ? {} : { group }), ...(tenant === undefined ? {} : { tenant }) };
    const created = await service.addVm(spec, policy, given);
    return await reply.code(201).send(created);
  });
  const detail = answers(200, refTo('VmDetail'), 'The VM, its spec and its installed products');
  app.get('/v1/vms/:vm', { schema: { summary: 'One VM', params: vmParams, response: detail } }, async ({ params }) =>
    service.showVm(params.vm),
  );
  const forgotten = { 204: { description: 'Forgotten', type: 'null' }, ...PROBLEMS };
  app.delete(
    '/v1/vms/:vm',
    { schema: { summary: 'Forget a VM', params: vmParams, response: forgotten } },
    async ({ params }, reply) => {
      await service.removeVm(params.vm);
      return await reply.code(204).send();
    },
  );
  const act = (verb: string, summary: string, action: (vm: string) => Promise<unknown>) =>
    app.post(
      `/v1/vms/:vm/${verb}`,
      { schema: { summary, params: vmParams, response: view } },
      async ({ params }) => action((params as Static<typeof vmParams>).vm), // The cast holds: the route's schema is vmParams; the path is no literal here.
    );
  act('start', 'Start a VM behind the closed gate', (vm) => service.startVm(vm));
  app.post(
    '/v1/vms/:vm/inspect',
    {
      schema: {
        summary: 'Look into the disk of a VM that is off',
        params: vmParams,
        response: answers(200, refTo('Inspection'), 'What the disk tells'),
      },
    },
    async ({ params }) => service.inspectVm(params.vm),
  );
  act('retry', 'Try again after a quarantine', (vm) => service.retryVm(vm));
  act('update', 'Update now; a connected VM stays plugged in', (vm) => service.updateVm(vm));
  addVmDecisionRoutes(app, service, view);
  addVmPolicyRoutes(app, service);
}

function addVmPolicyRoutes(app: Api, service: Service): void {
  const response = answers(200, refTo('Policy'), 'The policy that holds, and where each value comes from');
  app.get(
    '/v1/vms/:vm/policy',
    { schema: { summary: 'The policy of a VM', params: vmParams, response } },
    async ({ params }) => service.vmPolicy(params.vm),
  );
  const body = Type.Object(
    {
      set: PartialPolicySchema,
      unset: Type.Array(PolicyKeySchema, {
        maxItems: 100,
        description: 'Keys that are left to the group and the default',
      }),
      group: Type.Optional(Type.Union([GroupNameSchema, Type.Null()])),
      actor: Type.String({ minLength: 1, maxLength: 100, description: 'Who decides; goes into the audit record' }),
    },
    strict,
  );
  app.post(
    '/v1/vms/:vm/policy',
    { schema: { summary: 'Change the policy of one VM (audited)', params: vmParams, body, response } },
    async ({ params, body: change }) => service.setVmPolicy(params.vm, change),
  );
  app.get(
    '/v1/vms/:vm/config',
    {
      schema: {
        summary: 'What a VM is to be configured with, secrets blanked',
        params: vmParams,
        response: answers(200, refTo('VmConfig'), 'The items, and where each value comes from'),
      },
    },
    async ({ params }) => service.vmConfig(params.vm),
  );
}

function addVmDecisionRoutes(app: Api, service: Service, view: ReturnType<typeof answers>): void {
  const stop = Type.Object({ force: Type.Boolean() }, strict);
  app.post(
    '/v1/vms/:vm/stop',
    { schema: { summary: 'Stop a VM', params: vmParams, body: stop, response: view } },
    async ({ params, body }) => service.stopVm(params.vm, body),
  );
  const admit = Type.Object(
    {
      reason: Type.String({ minLength: 1, maxLength: 1000, pattern: '\\S' }),
      actor: Type.String({ minLength: 1, maxLength: 100, description: 'Who decides; goes into the audit record' }),
    },
    strict,
  );
  app.post(
    '/v1/vms/:vm/admit',
    { schema: { summary: 'Plug in without evidence (audited)', params: vmParams, body: admit, response: view } },
    async ({ params, body }) => service.admitVm(params.vm, body),
  );
  app.get(
    '/v1/vms/:vm/plan',
    {
      schema: {
        summary: 'What would be installed now',
        params: vmParams,
        response: answers(200, refTo('Plan'), 'The plan'),
      },
    },
    async ({ params }) => service.planVm(params.vm),
  );
  app.get(
    '/v1/vms/:vm/why',
    {
      schema: {
        summary: 'Why it is not plugged in',
        params: vmParams,
        response: answers(200, refTo('Why'), 'The reason'),
      },
    },
    async ({ params }) => service.whyVm(params.vm),
  );
}

function addReadingRoutes(app: Api, service: Service): void {
  const querystring = Type.Object(page, strict);
  app.get(
    '/v1/events',
    {
      schema: {
        summary: 'Past events; a WebSocket gives live ones',
        querystring,
        response: answers(200, listOf('events', 'VmEvent'), 'Events in order'),
      },
    },
    async ({ query }) => ({ events: await service.pastEvents(pageOf(query)) }),
  );
  app.get(
    '/v1/drift',
    {
      schema: {
        summary: 'Installed against latest',
        response: answers(200, listOf('drift', 'DriftRow'), 'What is behind'),
      },
    },
    async () => ({ drift: await service.drift() }),
  );
  app.get(
    '/v1/doctor',
    {
      schema: {
        summary: 'Is this host fit',
        response: answers(200, listOf('lines', 'DoctorLine'), 'The checks'),
      },
    },
    async () => ({ lines: await service.doctor() }),
  );
}

function addAuditRoutes(app: Api, service: Service): void {
  app.get(
    '/v1/audit',
    {
      schema: {
        summary: 'Audit records',
        querystring: Type.Object(page, strict),
        response: answers(200, listOf('entries', 'AuditEntry'), 'Records in order'),
      },
    },
    async ({ query }) => ({ entries: await service.auditEntries(pageOf(query)) }),
  );
  app.get(
    '/v1/audit/checkpoint',
    {
      schema: {
        summary: 'How the chain ends now, signed: to be kept elsewhere',
        response: answers(200, refTo('AuditCheckpoint'), 'The checkpoint'),
      },
    },
    async () => service.auditCheckpoint(),
  );
  const { vm: _, ...unfiltered } = page;
  app.get(
    '/v1/audit/export',
    {
      schema: {
        summary: 'Audit records as signed envelopes, to be verified elsewhere',
        querystring: Type.Object(unfiltered, strict),
        response: answers(200, refTo('AuditLines'), 'Lines in order; none: the end'),
      },
    },
    async ({ query }) => service.auditLines(pageOf(query)),
  );
  const rotate = Type.Object(
    { actor: Type.String({ minLength: 1, maxLength: 100, description: 'Who decides; goes into the audit record' }) },
    strict,
  );
  app.post(
    '/v1/audit/rotate-key',
    {
      schema: {
        summary: 'Sign audit records with a new key from now on',
        body: rotate,
        response: answers(200, refTo('AuditRotation'), 'The new key'),
      },
    },
    async ({ body }) => service.rotateAuditKey(body),
  );
  app.post(
    '/v1/audit/verify',
    {
      schema: {
        summary: 'Check the chain of records; with a checkpoint also that no tail was cut',
        body: Type.Object({ checkpoint: Type.Optional(AuditCheckpointSchema) }, strict),
        response: answers(200, refTo('AuditReport'), 'The finding'),
      },
    },
    async ({ body }) => service.auditVerify(body),
  );
}

type Query = { readonly after?: number; readonly limit?: number; readonly vm?: string };

function pageOf({ after, limit, vm }: Query): { afterSeq: number; limit: number; vm?: string } {
  return { afterSeq: after ?? 0, limit: limit ?? PAGE_DEFAULT, ...(vm === undefined ? {} : { vm }) };
}

function addUpkeepRoutes(app: Api, service: Service): void {
  const accept = Type.Object(
    {
      reason: Type.String({ minLength: 1, maxLength: 1000, pattern: '\\S' }),
      actor: Type.String({ minLength: 1, maxLength: 100, description: 'Who decides; goes into the audit record' }),
    },
    strict,
  );
  app.post(
    '/v1/clock/accept',
    {
      schema: {
        summary: 'The clock is right now: hold signatures against it again (audited)',
        body: accept,
        response: answers(200, refTo('Clock'), 'The clock, and what signatures are held against'),
      },
    },
    async ({ body }) => service.acceptClock(body),
  );
  const response = answers(200, refTo('Scrub'), 'Whether a reading is under way, and what the last one found');
  app.get('/v1/store/scrub', { schema: { summary: 'The last reading of the store', response } }, async () =>
    service.scrubView(),
  );
  app.post('/v1/store/scrub', { schema: { summary: 'Read every stored package again', response } }, async () =>
    service.startScrub(),
  );
}

function addVendorRoutes(app: Api, service: Service): void {
  app.get(
    '/v1/vendors',
    { schema: { summary: 'All vendors', response: answers(200, listOf('vendors', 'Vendor'), 'The vendors') } },
    async () => ({ vendors: await service.listVendors() }),
  );
  app.post(
    '/v1/vendors',
    {
      schema: {
        summary: 'Add a vendor',
        body: VendorConfigSchema,
        response: answers(201, refTo('VendorStatus'), 'Its state'),
      },
    },
    async ({ body }, reply) => reply.code(201).send(await service.addVendor(body)),
  );
  app.post(
    '/v1/vendors/check',
    {
      schema: {
        summary: 'Ask one vendor, or all, for news now',
        body: Type.Object({ name: Type.Union([VendorNameSchema, Type.Null()]) }, strict),
        response: answers(200, listOf('vendors', 'VendorStatus'), 'Their states'),
      },
    },
    async ({ body }) => ({ vendors: await service.checkVendor(body.name) }),
  );
  app.get(
    '/v1/vendors/:vendor/offers',
    {
      schema: {
        summary: 'What a vendor offers',
        params: vendorParams,
        response: answers(200, listOf('releases', 'Release'), 'Newest release of each product'),
      },
    },
    async ({ params }) => ({ releases: await service.vendorOffers(params.vendor) }),
  );
}
