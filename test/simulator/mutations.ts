// The invariants, and the guards that are broken on purpose to see that the simulator finds it: at least one for each.

/** What a broken guard is, and what the simulator must say of it. */
export const MUTATIONS = {
  'opens-on-installed': { breaks: 'apart', complaint: /drive and network/ },
  'ignores-kexec': { breaks: 'entitled', complaint: /the gate (stays|is) open/ },
  'blind-to-boots': { breaks: 'entitled', complaint: /the gate (stays|is) open|evidence of another boot/ },
  'reopens-after-reset': { breaks: 'entitled', complaint: /the gate (stays|is) open|drive and network/ },
  'believes-lies': { breaks: 'true', complaint: /evidence says|was believed with/ },
  'opens-before-record': { breaks: 'recorded', complaint: /without any record|that nobody judged/ },
  'audit-answers-too-soon': { breaks: 'recorded', complaint: /audit lost/ },
  'journal-answers-too-soon': { breaks: 'journaled', complaint: /journal lost/ },
  'wrong-bytes': { breaks: 'content', complaint: /never verified/ },
  'unfinished-bytes': { breaks: 'content', complaint: /unfinished download/ },
  'mixes-drives': { breaks: 'own-data', complaint: /the drive of another VM/ },
  'discards-accepted': { breaks: 'kept', complaint: /it was plugged in with/ },
  'forgets-failed': { breaks: 'kept', complaint: /offered again by itself/ },
  'drops-deadlines': { breaks: 'ends', complaint: /it has been|does not end/ },
  'one-lane': { breaks: 'neighbours', complaint: /nothing was wrong with it/ },
  'keeps-licensed': { breaks: 'licensed', complaint: /no lease/ },
  'leaks-pins': { breaks: 'leaks', complaint: /pinned/ },
  'leaks-drives': { breaks: 'leaks', complaint: /drive folder/ },
  'leaks-timers': { breaks: 'bounded', complaint: /timers/ },
  'leaks-taps': { breaks: 'leaks', complaint: /fence/ },
} as const satisfies Record<string, { readonly breaks: Invariant; readonly complaint: RegExp }>;

export type Mutation = keyof typeof MUTATIONS;

/** What must hold after every step, each with the words that docs/simulator.md uses. */
export const INVARIANTS = {
  entitled: 'the gate is open only for what was judged, or overridden, in this boot and session',
  recorded: 'every opening has its record on the disk before, none is ever lost, and the chain verifies',
  journaled: 'what the journal answered for is there after every crash, and what is open agrees with it',
  content: 'a drive carries what the vendor signed, verified and finished',
  'own-data': 'a VM sees its own drive only',
  licensed: 'what a license guards is on the drive of a VM only while its seat holds, however its server is',
  apart: 'drive and network are there together only in a live update',
  true: 'evidence is true of every guest that does not lie perfectly',
  kept: 'whoever was plugged in keeps what it has; what failed on trial is not offered again by itself',
  ends: 'no step outlives its deadline, and every VM ends connected, off, or quarantined with a reason and a next step that helps',
  neighbours: 'a VM with which nothing is wrong finishes in its time, whatever happens to the others',
  bounded: 'what waits, and what a guest makes the host write, is bounded',
  leaks: 'nothing that belonged to a removed VM stays: pins, drive folders, overlays, fenced taps, rows, timers',
} as const;
export type Invariant = keyof typeof INVARIANTS;
