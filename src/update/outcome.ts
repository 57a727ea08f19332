// What a transition answers: a move with its effects, nothing, or a refusal.
import type { HostBody } from '../guest/messages.ts';
import type { Effect } from './effect.ts';
import type { RunState } from './state.ts';

export type Outcome =
  /** `keepsStep`: a detail changed beside work in progress, whose answer and deadline stay valid. */
  | {
      readonly kind: 'moved';
      readonly state: RunState;
      readonly effects: readonly Effect[];
      readonly keepsStep: boolean;
    }
  /** The event means nothing here; nothing changes. */
  | { readonly kind: 'ignored'; readonly because: string }
  /** Somebody asked for what may not be done here; nothing changes, and the asker is told. */
  | { readonly kind: 'denied'; readonly code: DenialCode; readonly because: string };

export type DenialCode =
  | 'already-running'
  | 'not-running'
  | 'already-connected'
  | 'no-agent'
  | 'overlay'
  | 'under-way'
  | 'unexpected';

/** A new state, and what is to be done for it. */
export const moved = (state: RunState, ...effects: readonly Effect[]): Outcome => ({
  kind: 'moved',
  state,
  effects,
  keepsStep: false,
});
/** A detail changed; work in progress goes on. */
export const amended = (state: RunState, ...effects: readonly Effect[]): Outcome => ({
  kind: 'moved',
  state,
  effects,
  keepsStep: true,
});
/** Nothing changes. */
export const ignored = (because: string): Outcome => ({ kind: 'ignored', because });
/** Nothing changes, and the asker is told why. */
export const denied = (code: DenialCode, because: string): Outcome => ({ kind: 'denied', code, because });
/** Says something to the guest. */
export const send = (body: HostBody): Effect => ({ kind: 'send', body });
