// What an item comes to in this guest: files to write, and what is done once they are there.
import type { FolderWish } from './place.ts';
import type { Binary } from './text.ts';

/** How much of a file is the item's: all of it, its own marked lines, or nothing that anybody looks at later. */
export type Watch = 'whole' | 'lines' | 'none';

export type Content = { readonly text: Binary } | 'remove' | 'leave';

export type Change = {
  readonly path: string;
  /** The new content, from what is there now (null: no file). `remove`: it is taken away; `leave`: it stays, whatever it is. */
  readonly content: (before: Binary | null) => Content;
  /** `keep`: as the file has it, and root's with 0644 for a new one. What others write to as well is never a link. */
  readonly access: 'keep' | { readonly mode: number; readonly uid: number; readonly gid: number };
  /** Of the folder it is in, if that has to be made. */
  readonly folder?: FolderWish;
  readonly watch: Watch;
};

export type NetworkWay = 'networkd' | 'network-manager' | 'ifupdown';

/** An interface to be set anew; `name` is null where no card has its MAC. */
export type Link = { readonly mac: string; readonly name: string | null; readonly isDhcp: boolean };

/** What is done after the files were written, and once more when they were put back. */
export type Step =
  | { readonly do: 'hostname'; readonly name: string; readonly before: string }
  | { readonly do: 'network'; readonly way: NetworkWay; readonly links: readonly Link[] }
  | { readonly do: 'restart' | 'reload'; readonly unit: string };

export type Rendered = { readonly changes: readonly Change[]; readonly steps: readonly Step[] };

/** The id of an item in results and messages. The model's own function comes with schemas, which the executable has no room for. */
export const configItemId = (item: string): string => `config/${item}`;
