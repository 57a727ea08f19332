// Names a run.
import { randomToken } from '../base/digest.ts';
import type { RunId } from '../model/ids.ts';

/** An id that no other run has. */
export const newRunId = (): RunId => randomToken() as RunId; // 32 hex digits are what a RunId is
