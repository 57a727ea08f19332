// Applies the configuration of a manifest as one set: all of it, or everything is as before.
//
//   read, verify and render every item ─► keep what is there (previous/) ─► journal ─► write each file (temp, flush, rename)
//     ─► steps (names, network, units) ─► health checks ─► record (from here on the set counts) ─► forget the journal
//
// Until the record is written, undoFiles takes everything back: at once after a failure, at the next start after a power cut.
import { findShapeFault } from '../../src/base/json-shape.ts';
import { AGENT_CONFIG_HEALTH_MS, CONFIG_ITEM_BYTES_MAX } from '../../src/base/limits.ts';
import type { ConfigDriveFile, GuestConfigItem } from '../../src/model/guest-config.ts';
import type { Manifest } from '../../src/model/manifest.ts';
import type { ItemResult } from '../../src/model/result.ts';
import { readBytes, removeTree, writeDurably } from '../durable.ts';
import { checkHealth } from '../health.ts';
import type { Paths } from '../paths.ts';
import { AgentError, type FileStat, type Platform, SystemError } from '../platform/platform.ts';
import { type ConfigJournal, EMBEDDED } from '../schemas.ts';
import { findUser } from './accounts.ts';
import { type Change, configItemId, type Step } from './change.ts';
import { makeWay, type Place, walkTo } from './place.ts';
import { type Access, readPlace, removePlace, writePlace } from './place-file.ts';
import {
  type AppliedFile,
  type AppliedItem,
  forgetJournal,
  forgetPrevious,
  isBelowUnits,
  isFileAsApplied,
  previousFolder,
  readApplied,
  watchedDigest,
  writeApplied,
  writeJournal,
} from './records.ts';
import { renderItem } from './render.ts';
import { reloadUnits, runStep } from './steps.ts';
import { fromBinary, withoutBlock } from './text.ts';
import { finishUndo, temporaryName, undoFiles } from './undo.ts';

export type ConfigContext = {
  readonly platform: Platform;
  readonly paths: Paths;
  readonly drive: string;
  readonly manifest: Manifest;
  /** Whether the host has admitted this boot to the network already. */
  readonly isAdmitted: boolean;
  readonly report: (item: { readonly id: string }, phase: 'install' | 'check') => void;
  /** Remembers that something takes effect with the next boot. */
  readonly requireReboot: () => void;
};

type ConfigEntry = NonNullable<Manifest['config']>[number];
/** What one item, new or configured no longer, comes to. */
type Work = {
  readonly item: string;
  readonly changes: readonly Change[];
  readonly steps: readonly Step[];
  readonly config: GuestConfigItem | null;
};

/** The ids of everything the set has a result for. */
export function configIds({ config = [], configRemoved = [] }: Manifest): readonly string[] {
  return [...config.map(({ item }) => item), ...configRemoved].map(configItemId);
}

/** Results of the whole set, one for each item. What an item says is in none of them. */
export async function applyConfig(context: ConfigContext): Promise<readonly ItemResult[]> {
  const { platform, paths, manifest } = context;
  const startMs = platform.clock.monotonicMs();
  // The power failed after the set counted and before its results were kept.
  const isDone = readApplied(platform, paths).set === setOf(manifest);
  const failed = isDone ? null : await applyOrUndo(context);
  const durationMs = Math.round(platform.clock.monotonicMs() - startMs);
  const ids = configIds(manifest);
  if (failed === null) return ids.map((item) => ({ item, outcome: 'installed', durationMs }));
  const { item, error } = failed;
  const first: ItemResult = {
    item: configItemId(item),
    outcome: 'failed',
    code: error.word,
    output: error.message,
    durationMs,
  };
  const others = ids.filter((id) => id !== first.item);
  // The one that failed comes first: it is what the host tells.
  return [
    first,
    ...others.map((id): ItemResult => ({ item: id, outcome: 'skipped', code: 'set-rolled-back', durationMs: 0 })),
  ];
}

const setOf = ({ run, planDigest }: Manifest): string => `${run} ${planDigest}`;

/** An item that kept the set from being applied. */
class ItemFailure extends Error {
  readonly item: string;
  readonly error: AgentError;

  constructor(item: string, error: AgentError) {
    super(error.message);
    this.item = item;
    this.error = error;
  }
}

async function applyOrUndo(context: ConfigContext): Promise<ItemFailure | null> {
  const { platform, paths, isAdmitted } = context;
  try {
    await applySet(context);
    return null;
  } catch (error) {
    const failed = error instanceof AgentError ? new ItemFailure(firstOf(context.manifest), error) : error;
    if (!(failed instanceof ItemFailure)) throw failed;
    platform.log(`${configItemId(failed.item)} is not applied, and everything is put back: ${failed.message}`);
    const stuck = await undo(platform, paths, isAdmitted);
    if (stuck === null) forgetPrevious(platform, paths);
    return stuck === null ? failed : new ItemFailure(failed.item, stuck);
  }
}

/** What is of no item, a full disk when the set is to count, is told of the first. */
const firstOf = ({ config, configRemoved }: Manifest): string => config?.[0]?.item ?? configRemoved?.[0] ?? '';

/** Null, or why it could not be put back now; the next start tries again. */
async function undo(platform: Platform, paths: Paths, isAdmitted: boolean): Promise<AgentError | null> {
  try {
    const journal = undoFiles(platform, paths);
    if (journal !== null) await finishUndo(platform, paths, journal, isAdmitted);
    return null;
  } catch (error) {
    if (!(error instanceof AgentError)) throw error;
    return new AgentError('rollback-failed', `what was applied could not be put back: ${error.message}`, error);
  }
}

async function applySet(context: ConfigContext): Promise<void> {
  const { platform, paths, manifest, report, requireReboot, isAdmitted } = context;
  // What an earlier set could not put back must not be taken for what was there before this one.
  const stuck = await undo(platform, paths, isAdmitted);
  if (stuck !== null) throw new ItemFailure(firstOf(manifest), stuck);
  const works = await gatherWorks(context);
  const before = readApplied(platform, paths);
  beginSet(platform, paths, works, setOf(manifest));
  let index = 0;
  const written = new Map<string, AppliedFile[]>();
  for (const work of works) {
    report({ id: configItemId(work.item) }, 'install');
    const files = within(work.item, () =>
      work.changes.map((change) => {
        const old = oldFile(before.items, work.item, change);
        return writeChange(platform, paths, { item: work.item, change, index: index++, old });
      }),
    );
    written.set(
      work.item,
      files.filter((file) => file !== null),
    );
    await platform.clock.sleep(0); // The channel is heard in between.
  }
  await runSteps(context, works);
  await runChecks(context, works);
  if (works.some(({ config }) => config?.apply?.some((step) => 'reboot' in step) === true)) requireReboot();
  const items = works.flatMap(({ item, config }): AppliedItem[] =>
    config === null ? [] : [{ item, version: config.version, files: written.get(item) ?? [] }],
  );
  const settled = new Set(works.map(({ item }) => item));
  const others = before.items.filter(({ item }) => !settled.has(item));
  writeApplied(platform, paths, { set: setOf(manifest), items: [...others, ...items] });
  forgetJournal(platform, paths);
}

function within<T>(item: string, step: () => T): T {
  try {
    return step();
  } catch (error) {
    throw failureOf(item, error);
  }
}

function failureOf(item: string, error: unknown): unknown {
  return error instanceof AgentError ? new ItemFailure(item, error) : error;
}

// ---- What is to be done ---------------------------------------------------------------------------------------------

/** Everything is read and understood before anything is changed. */
async function gatherWorks(context: ConfigContext): Promise<readonly Work[]> {
  const { platform, paths, manifest } = context;
  const applied = new Map(readApplied(platform, paths).items.map((each) => [each.item, each]));
  const works: Work[] = [];
  for (const entry of manifest.config ?? []) {
    try {
      const config = readItem(context, entry);
      const { changes, steps } = await renderItem(platform, paths, config);
      const kept = new Set(changes.map(({ path }) => path));
      const stale = applied.get(entry.item)?.files.filter(({ path }) => !kept.has(path)) ?? [];
      const undone = stale.map((file) => takenBack(platform, paths, entry.item, file));
      works.push({ item: entry.item, changes: [...changes, ...undone], steps, config });
    } catch (error) {
      throw failureOf(entry.item, error);
    }
  }
  for (const item of manifest.configRemoved ?? []) {
    const files = applied.get(item)?.files ?? [];
    const changes = files.map((file) => takenBack(platform, paths, item, file));
    works.push({ item, changes, steps: [], config: null });
  }
  checkPaths(works);
  return works;
}

/** The bytes are those of the manifest, and it is for this VM and run. */
function readItem({ platform, drive, manifest }: ConfigContext, entry: ConfigEntry): GuestConfigItem {
  const text = readDriveFile(platform, `${drive}${entry.path}`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new AgentError('config-malformed', `${entry.path} is not JSON`);
  }
  const fault = findShapeFault(EMBEDDED.configFile, value);
  if (fault !== null) throw new AgentError('config-malformed', `${entry.path}: ${fault.field} does not fit`);
  // The cast holds: the value fits the schema that ConfigDriveFile is derived from.
  const { vm, run, item } = value as ConfigDriveFile;
  if (vm !== manifest.vm || run !== manifest.run)
    throw new AgentError('config-wrong-vm', `${entry.path} is for another VM or run`);
  if (item.item !== entry.item || item.version !== entry.version)
    throw new AgentError('config-malformed', `${entry.path} is another item than the manifest says`);
  return item;
}

function readDriveFile(platform: Platform, path: string): string {
  try {
    const bytes = readBytes(platform, path, CONFIG_ITEM_BYTES_MAX);
    return platform.decode(bytes ?? new Uint8Array(0));
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    throw new AgentError('drive-unreadable', error.message, error);
  }
}

/** What was made for an item goes; what was there before it, or was changed since, is the guest's own now. */
function takenBack(platform: Platform, paths: Paths, item: string, file: AppliedFile): Change {
  const isOurs = file.watch === 'whole' && file.wasAbsent && isFileAsApplied(platform, paths, item, file);
  const content: Change['content'] = (before) => {
    if (isOurs) return 'remove';
    if (before === null || file.watch !== 'lines') return 'leave';
    const rest = withoutBlock(before, item);
    return rest === '' && file.wasAbsent ? 'remove' : { text: rest };
  };
  return { path: file.path, content, access: 'keep', watch: 'none' };
}

/** Of two items that want a file each as a whole, neither would be what is configured. */
function checkPaths(works: readonly Work[]): void {
  const wanted = new Map<string, string>();
  for (const { item, changes, config } of works) {
    for (const { path, watch } of changes) {
      if (config === null || watch !== 'whole') continue;
      const other = wanted.get(path);
      if (other !== undefined) {
        const error = new AgentError('path-twice', `${path} is configured by ${configItemId(other)}, too`);
        throw new ItemFailure(item, error);
      }
      wanted.set(path, item);
    }
  }
}

// ---- Files ----------------------------------------------------------------------------------------------------------

/** Keeps what is there, then writes down what is about to be changed. */
function beginSet(platform: Platform, paths: Paths, works: readonly Work[], set: string): void {
  removeTree(platform, previousFolder(paths));
  const places: ConfigJournal['places'] = [];
  const folders = new Set<string>();
  for (const { item, changes } of works) {
    for (const { path } of changes) {
      within(item, () => {
        const walk = walkTo(platform, paths, path);
        if (walk.kind === 'missing') {
          for (const folder of walk.folders) folders.add(folder);
          places.push({ path, kind: 'absent', mode: 0, uid: 0, gid: 0 });
          return;
        }
        try {
          places.push({ path, ...keep(platform, paths, walk.place, places.length) });
        } finally {
          walk.place.folder.close();
        }
      });
    }
  }
  const steps = works.flatMap((work) => work.steps).map(journaledStep);
  within(works[0]?.item ?? '', () => writeJournal(platform, paths, { set, places, folders: [...folders], steps }));
}

/** A copy that the journal may have: its type is not read-only. */
function journaledStep(step: Step): ConfigJournal['steps'][number] {
  return step.do === 'network' ? { ...step, links: step.links.map((link) => ({ ...link })) } : { ...step };
}

type Before = Omit<ConfigJournal['places'][number], 'path'>;

function keep(platform: Platform, paths: Paths, place: Place, index: number): Before {
  const found = platform.files.stat(place.path);
  if (found === null) return { kind: 'absent', mode: 0, uid: 0, gid: 0 };
  const { mode, uid, gid } = found;
  switch (found.kind) {
    case 'folder':
      throw new AgentError('path-is-folder', `${place.realPath} is a folder`);
    case 'other':
      throw new AgentError('path-not-file', `${place.realPath} is no plain file`);
    case 'symlink':
      return { kind: 'symlink', target: platform.files.readLink(place.path) ?? '', mode, uid, gid };
    case 'file': {
      const content = fromBinary(readPlace(platform, place.path) ?? '');
      writeDurably(platform, `${previousFolder(paths)}/${index}`, content, 0o600);
      return { kind: 'file', mode, uid, gid };
    }
    default:
      return found.kind satisfies never;
  }
}

const oldFile = (items: readonly AppliedItem[], item: string, change: Change): AppliedFile | undefined =>
  items.find((each) => each.item === item)?.files.find(({ path }) => path === change.path);

type Write = {
  readonly item: string;
  readonly change: Change;
  /** Its place in the journal. */
  readonly index: number;
  /** The same file as the item had it before. */
  readonly old: AppliedFile | undefined;
};

/** What is remembered of the file; null where it is not the item's any more. */
function writeChange(platform: Platform, paths: Paths, { item, change, index, old }: Write): AppliedFile | null {
  // A file that is taken away needs no folder made for it.
  if (typeof change.content(null) === 'string' && walkTo(platform, paths, change.path).kind === 'missing') return null;
  const place = makeWay(platform, paths, change.path, change.folder);
  try {
    const found = platform.files.stat(place.path);
    const before = found?.kind === 'file' ? readPlace(platform, place.path) : null;
    const content = change.content(before);
    if (content === 'remove') removePlace(platform, place);
    if (typeof content === 'string') return null;
    const isShared = change.watch === 'lines' || change.access === 'keep';
    if (isShared && found?.kind === 'symlink')
      throw new AgentError('path-link', `${place.realPath} is a link; what others write there, too, is not replaced`);
    const access = accessOf(platform, paths, change, found);
    if (change.watch === 'lines' && found?.kind === 'file') checkReadable(found, access, place);
    // What is right already is not written: a file that nobody changed keeps its time.
    const isRight = content.text === before && hasAccess(found, access);
    if (!isRight) writePlace(platform, place, temporaryName(index), content.text, access);
    const { mode, uid, gid } = access;
    const digest = watchedDigest(platform, item, change.watch, content.text);
    const wasAbsent = old?.wasAbsent ?? found === null;
    return { path: change.path, watch: change.watch, digest, mode, uid, gid, wasAbsent };
  } finally {
    place.folder.close();
  }
}

/** Where hard links are not restricted, a user's file may be another name of one that only root reads: its content is not handed on. */
function checkReadable(found: FileStat, { uid }: Access, { realPath }: Place): void {
  if (found.uid === uid || (found.mode & 0o004) !== 0) return;
  throw new AgentError('path-link', `${realPath} is somebody else's, and not for its user to read`);
}

function accessOf(platform: Platform, paths: Paths, { access }: Change, found: FileStat | null): Access {
  if (access !== 'keep') return access;
  if (found?.kind === 'file') return found;
  const { uid, gid } = findUser(platform, paths, 'root');
  return { mode: 0o644, uid, gid };
}

function hasAccess(found: Access | null, { mode, uid, gid }: Access): boolean {
  return found !== null && found.mode === mode && found.uid === uid && found.gid === gid;
}

// ---- Steps and checks -----------------------------------------------------------------------------------------------

/** Each once, for the first item that asks for it. */
async function runSteps({ platform, paths, isAdmitted }: ConfigContext, works: readonly Work[]): Promise<void> {
  if (works.some(({ changes }) => changes.some(({ path }) => isBelowUnits(paths, path))))
    await reloadUnits(platform, paths);
  const done = new Set<string>();
  for (const { item, steps } of works) {
    for (const step of steps) {
      const key = JSON.stringify(step);
      if (done.has(key)) continue;
      done.add(key);
      try {
        await runStep(platform, paths, step, isAdmitted);
      } catch (error) {
        throw failureOf(item, error);
      }
    }
  }
}

/** An item that takes effect with the next boot cannot be checked before it: the policy's health checks come after that. */
async function runChecks({ platform, paths, report }: ConfigContext, works: readonly Work[]): Promise<void> {
  for (const { item, config } of works) {
    const checks = config?.health ?? [];
    if (checks.length === 0 || config?.apply?.some((step) => 'reboot' in step) === true) continue;
    report({ id: configItemId(item) }, 'check');
    const results = await checkHealth(platform, paths, { checks, timeoutMs: AGENT_CONFIG_HEALTH_MS });
    const failed = results.find(({ isHealthy }) => !isHealthy);
    // Why is for the guest's own log: what a check prints may be a piece of what was configured.
    if (failed !== undefined)
      throw new ItemFailure(item, new AgentError('health-failed', `the health check ${failed.check} did not pass`));
  }
}
