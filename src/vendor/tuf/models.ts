// The parts of @tufjs/models that its index leaves out, in one place: the version is pinned.
export { Key, Metadata, MetadataKind, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp } from '@tufjs/models';
export { Delegations } from '@tufjs/models/dist/delegations.js';
export { DelegatedRole, Role } from '@tufjs/models/dist/role.js';
