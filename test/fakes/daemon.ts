// A daemon of the fake service: the real API on a real socket in a temporary run folder.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { socketPathOf } from '../../proxy/config.ts';
import { listenOnSocket, makeHttpApi } from '../../proxy/http-api.ts';
import type { Service } from '../../proxy/service.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { type FakeService, makeFakeService } from './service.ts';

export type FakeDaemon = {
  /** What a command needs to find this daemon, and no configuration of the machine. */
  readonly env: NodeJS.ProcessEnv;
  readonly folder: string;
  readonly service: () => FakeService;
  /** A fresh service behind the same socket. */
  readonly reset: (service?: FakeService) => FakeService;
  readonly close: () => Promise<void>;
};

/** Starts it. */
export async function startFakeDaemon(): Promise<FakeDaemon> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-fake-'));
  let fake = makeFakeService();
  const current: Service = new Proxy(fake, { get: (_target, key) => Reflect.get(fake, key) });
  const api = await makeHttpApi({ service: current, log: silentLog, clock: systemClock });
  await listenOnSocket(api, socketPathOf(folder), process.getuid?.() ?? 0);
  return {
    env: { PATH: process.env.PATH, HOME: folder, XDG_CONFIG_HOME: folder, PRATIQUE_RUN: folder, PRATIQUE_DATA: folder },
    folder,
    service: () => fake,
    reset: (service = makeFakeService()) => {
      fake = service;
      return fake;
    },
    close: async () => {
      await api.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}
