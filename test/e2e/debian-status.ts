// dpkg status files for tests, made of an archive's own package indexes: a machine at the level of a release, and after an update.
import { join } from 'node:path';
import { runCommand } from '../../src/base/run-command.ts';
import type { SignedArchive } from '../../src/vendor/vendor.ts';

export type Stanza = ReadonlyMap<string, string>;

/** What makes a version of a package what it is to apt; without Installed-Size it would take the same version for another. */
const KEPT = [
  'Package',
  'Version',
  'Architecture',
  'Multi-Arch',
  'Source',
  'Installed-Size',
  'Pre-Depends',
  'Depends',
  'Breaks',
  'Conflicts',
  'Replaces',
  'Provides',
];

function stanzasOf(text: string): readonly Stanza[] {
  const fields = (stanza: string) => [...stanza.matchAll(/^([A-Za-z0-9-]+): (.*)$/gm)];
  return text
    .trim()
    .split('\n\n')
    .map((stanza) => new Map(fields(stanza).map(([, name = '', value = '']) => [name, value])));
}

/** The packages of archives laid out in a folder, the suites' in the order given. */
export async function readIndexes(
  folder: string,
  archives: readonly SignedArchive[],
): Promise<ReadonlyMap<string, readonly Stanza[]>> {
  const bySuite = new Map<string, readonly Stanza[]>();
  for (const { suite, files } of archives) {
    const stanzas: Stanza[] = [];
    for (const { path } of files.filter((file) => file.path.endsWith('.xz'))) {
      const text = await runCommand(['xz', '-dc', join(folder, path)], { outputBytesMax: 2 ** 30 });
      stanzas.push(...stanzasOf(text).filter((stanza) => stanza.has('Package')));
    }
    bySuite.set(suite, stanzas);
  }
  return bySuite;
}

const nameOf = (stanza: Stanza): string => stanza.get('Package') ?? '';

/** The names a Depends-like field asks for, of alternatives the first. */
function neededBy(field: string | undefined): readonly string[] {
  return (field ?? '').split(',').map((group) => (group.split('|')[0] ?? '').trim().replace(/[ :(].*$/, ''));
}

/**
 * A machine as installed from a release's first medium: the base system and the named packages, with what these need, each at
 * the version of the release itself.
 */
export function installRelease(release: readonly Stanza[], names: readonly string[]): readonly Stanza[] {
  const byName = new Map(release.map((stanza) => [nameOf(stanza), stanza]));
  const isBase = (stanza: Stanza) => ['required', 'important', 'standard'].includes(stanza.get('Priority') ?? '');
  const installed = new Map<string, Stanza>();
  const queue = [...release.filter(isBase).map(nameOf), ...names];
  for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
    const stanza = byName.get(name);
    if (stanza === undefined || installed.has(name)) continue;
    installed.set(name, stanza);
    queue.push(...neededBy(stanza.get('Pre-Depends')), ...neededBy(stanza.get('Depends')));
  }
  return [...installed.values()];
}

/** The same machine with these versions instead of, or beside, what it has. */
export function updateTo(
  installed: readonly Stanza[],
  indexes: ReadonlyMap<string, readonly Stanza[]>,
  versions: ReadonlyMap<string, string>,
): readonly Stanza[] {
  const updated = [...indexes.values()]
    .flat()
    .filter((stanza) => versions.get(nameOf(stanza)) === stanza.get('Version'));
  return [...new Map([...installed, ...updated].map((stanza) => [nameOf(stanza), stanza])).values()];
}

/** A dpkg status file in which these are installed. */
export function statusText(stanzas: readonly Stanza[]): string {
  const texts = stanzas.map((stanza) => {
    const lines = KEPT.flatMap((field) => (stanza.has(field) ? [`${field}: ${stanza.get(field)}`] : []));
    return [...lines, 'Status: install ok installed', 'Maintainer: x <x@example.org>', 'Description: x'].join('\n');
  });
  return `${texts.join('\n\n')}\n`;
}
