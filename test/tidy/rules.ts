// The rules of the house as functions from source files to violations: layers, "only here", and the limits of style.
import { dirname, join, normalize } from 'node:path/posix';

export type SourceFile = { readonly path: string; readonly text: string };
export type Violation = { readonly path: string; readonly line: number; readonly rule: string; readonly text: string };
export type Import = { readonly from: string; readonly to: string; readonly line: number };

/** Which rooms each room may import (ARCHITECTURE.md, "Who may import whom"). Every room may import itself. */
export const LAYERS: Readonly<Record<string, readonly string[]>> = {
  base: [],
  model: ['base'],
  vendor: ['base', 'model'],
  hypervisor: ['base', 'model'],
  license: ['base', 'model'],
  audit: ['base', 'model'],
  guest: ['base', 'model'],
  store: ['base', 'model', 'vendor'],
  inventory: ['base', 'model', 'vendor'],
  'guest-config': ['base', 'model', 'vendor'],
  inspect: ['base', 'model', 'vendor'],
  drive: ['base', 'model', 'store'],
  confirm: ['base', 'model', 'inventory', 'guest'],
  gate: ['base', 'model', 'confirm', 'hypervisor', 'audit'],
  update: [
    'base',
    'model',
    'vendor',
    'hypervisor',
    'license',
    'audit',
    'guest',
    'store',
    'inventory',
    'guest-config',
    'inspect',
    'drive',
    'confirm',
    'gate',
  ],
  approval: ['base', 'model', 'vendor', 'audit', 'inventory', 'update'],
};

/** The build of the guest agent runs on the host. */
const AGENT_BUILD = 'guest-agent/build.ts';

/** What the guest agent may import: what runs without Node, and types. */
const AGENT_MAY_IMPORT = [
  /^src\/base\/(digest-text|errors|json-lines|json-shape|kernel-release|limits|printable)\.ts$/,
  /^src\/model\//,
  /^src\/guest\/messages\.ts$/,
];

/** The room of a path: `base` for src/base/x.ts, `proxy`, `guest-agent`, `images`, `scripts` or `test` otherwise. */
export function roomOf(path: string): string {
  const parts = path.split('/');
  return parts[0] === 'src' ? (parts[1] ?? '') : (parts[0] ?? '');
}

const isTest = (path: string): boolean => path.startsWith('test/') || path.endsWith('.test.ts');

const lineAt = (text: string, index: number): number => text.slice(0, index).split('\n').length;

/** Imports of our own files, with repository paths. */
export function importsOf(file: SourceFile): readonly Import[] {
  const pattern = /(?:from\s*|import\s*\(?\s*)'(\.[^']+)'/g;
  return [...file.text.matchAll(pattern)].map((match) => ({
    from: file.path,
    to: normalize(join(dirname(file.path), match[1] ?? '')),
    line: lineAt(file.text, match.index),
  }));
}

/** Layer violations. */
export function checkLayers(files: readonly SourceFile[]): readonly Violation[] {
  const violations: Violation[] = [];
  for (const file of files.filter((each) => !isTest(each.path))) {
    for (const { to, line } of importsOf(file)) {
      const complaint = complainAboutImport(file.path, to);
      if (complaint !== null) violations.push({ path: file.path, line, rule: 'layers', text: complaint });
    }
  }
  return violations;
}

function complainAboutImport(from: string, to: string): string | null {
  if (isTest(to)) return `${to} is a test; nothing outside of tests imports it`;
  const room = roomOf(from);
  const target = roomOf(to);
  if (room === target) return null;
  if (room === 'guest-agent' && from !== AGENT_BUILD)
    return AGENT_MAY_IMPORT.some((allowed) => allowed.test(to)) ? null : `the guest agent may not import ${to}`;
  if (!from.startsWith('src/')) return null;
  const allowed = LAYERS[room];
  if (allowed === undefined) return `the folder src/${room} has no layer rule`;
  return to.startsWith('src/') && allowed.includes(target) ? null : `${room} may not import ${to}`;
}

type OnlyHere = {
  readonly rule: string;
  readonly pattern: RegExp;
  readonly where: readonly RegExp[];
  readonly scope: RegExp;
};

const PRODUCT = /^(src|proxy)\//;

/** Things that may stand in one place only. */
export const ONLY_HERE: readonly OnlyHere[] = [
  {
    rule: 'only gate/ opens',
    pattern: /\.(raiseLinks|releaseMedia|admit)\(/g,
    where: [/^src\/gate\//, /^src\/hypervisor\//],
    scope: PRODUCT,
  },
  {
    rule: 'only gate/ lets a VM run',
    pattern: /(running|vm)\.resume\(/g,
    where: [/^src\/gate\//, /^src\/hypervisor\//],
    scope: PRODUCT,
  },
  {
    rule: 'only confirm/judge.ts makes evidence',
    pattern: /\bas Evidence\b/g,
    where: [/^src\/confirm\/judge\.ts$/],
    scope: PRODUCT,
  },
  {
    rule: 'only hypervisor/ speaks QMP or libvirt',
    pattern: /'(qmp_capabilities|set_link|system_reset|device_add|device_del|blockdev-add)'|'virsh'/g,
    // What people type when Pratique itself is broken is printed, not spoken.
    where: [/^src\/hypervisor\//, /^proxy\/break-glass\.ts$/],
    scope: PRODUCT,
  },
  {
    rule: 'only base/clock.ts reads the time',
    pattern: /\b(Date\.now\(|performance\.now\(|setTimeout\b|setInterval\b|new Date\(\))/g,
    where: [/^src\/base\/clock\.ts$/],
    scope: PRODUCT,
  },
  {
    rule: 'only license/vault.ts sees a token in clear',
    pattern: /\b(unsealToken|tokenInClear)\b/g,
    where: [/^src\/license\/vault\.ts$/],
    scope: PRODUCT,
  },
];

/** Violations of the "only here" rules, tests apart. */
export function checkOnlyHere(files: readonly SourceFile[]): readonly Violation[] {
  const violations: Violation[] = [];
  for (const { rule, pattern, where, scope } of ONLY_HERE) {
    for (const file of files) {
      if (isTest(file.path) || !scope.test(file.path) || where.some((place) => place.test(file.path))) continue;
      for (const match of withoutComments(file.text).matchAll(pattern)) {
        violations.push({ path: file.path, line: lineAt(file.text, match.index), rule, text: match[0] });
      }
    }
  }
  return violations;
}

/** The text with comments blanked, so that line numbers stay. */
function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\/|(^|\s)\/\/[^\n]*/g, (comment) => comment.replace(/[^\n]/g, ' '));
}

export const FILE_LINES_MAX = 600;

/** Violations of style.md that a machine can see and Biome does not. */
export function checkStyle(files: readonly SourceFile[]): readonly Violation[] {
  return files.flatMap((file) => [
    ...complain(
      file,
      'files are kebab-case',
      /^[a-z0-9]+(-[a-z0-9]+)*(\.test|\.d)?\.ts$/.test(file.path.split('/').at(-1) ?? ''),
    ),
    ...complain(file, 'the first line says what the file is for', /^(#!.*\n)?\/\/ \S/.test(file.text)),
    ...complain(file, `a file has at most ${FILE_LINES_MAX} lines`, file.text.split('\n').length <= FILE_LINES_MAX),
    ...matches(file, 'no unfinished marks without an issue number', /\b(TODO|FIXME|XXX)\b(?! #\d)/g),
    ...matches(file, 'no test is skipped', /\b(test|it|describe)\.(skip|todo|only)\(|,\s*\{\s*(skip|todo|only):/g),
    ...matches(
      file,
      'no manager, helper or util',
      /^export (?:class|function|const|type) \w*(Manager|Helper|Util)s?\b/gm,
    ),
  ]);
}

const complain = (file: SourceFile, rule: string, isFine: boolean): readonly Violation[] =>
  isFine ? [] : [{ path: file.path, line: 1, rule, text: file.path }];

const matches = (file: SourceFile, rule: string, pattern: RegExp): readonly Violation[] =>
  [...file.text.matchAll(pattern)].map((match) => ({
    path: file.path,
    line: lineAt(file.text, match.index),
    rule,
    text: match[0],
  }));
