// What the doctor looks through, and what it says of each thing.

export type DoctorPorts = {
  /** Whether hardware virtualisation was proven to work. */
  readonly probeKvm: () => Promise<boolean>;
  /** How a command ended; null when it is not installed or hangs. */
  readonly run: (
    argv: readonly string[],
  ) => Promise<{ readonly exitCode: number | null; readonly text: string } | null>;
  readonly mayUse: (path: string) => Promise<boolean>;
  readonly readText: (path: string) => Promise<string | null>;
  /** Free bytes and mode of a folder, or of its nearest ancestor that exists. */
  readonly folder: (path: string) => Promise<{ readonly freeBytes: number; readonly mode: number | null }>;
  readonly nowMs: () => number;
  readonly uid: number;
};

export type DoctorLine = {
  readonly check: string;
  readonly state: 'ok' | 'warning' | 'unfit';
  readonly detail: string;
  /** How to mend it; null when ok. */
  readonly mend: string | null;
};
