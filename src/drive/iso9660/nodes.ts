// The nodes of the tree that entries become.
import type { BlobSource, InlineSource } from './types.ts';

type NodeCommon = {
  readonly name: string;
  readonly mode: number;
  readonly mtimeMs: number;
};
export type FolderNode = NodeCommon & {
  readonly kind: 'folder';
  /** Null for the root only. */
  readonly parent: FolderNode | null;
  readonly children: Map<string, TreeNode>;
  /** The children by name, in UTF-16 order; filled when the tree is complete. */
  readonly sorted: TreeNode[];
  /** How many of the children are folders. */
  subfolders: number;
};
export type FileNode = NodeCommon & {
  readonly kind: 'file';
  /** Its number among the files of the tree, from 0. */
  readonly index: number;
  readonly sizeBytes: number;
  readonly source: BlobSource | InlineSource;
};
export type LinkNode = NodeCommon & {
  readonly kind: 'symlink';
  /** Where it lies: its target starts there. */
  readonly folder: FolderNode;
  readonly target: string;
};
export type TreeNode = FolderNode | FileNode | LinkNode;
