// Which promises of a scenario the findings of its run break, in words.
import type { DemoDocument } from './document.ts';
import type { Scenario } from './scenarios.ts';

/** One sentence for each broken promise; none when the scenario kept its word. */
export function brokenPromises(plan: Scenario, document: DemoDocument): readonly string[] {
  const { installed, latest } = document;
  const isStale = Object.entries(latest).some(([product, version]) => installed[product] !== version);
  const isOpen = plan.ends === 'connected';
  const checks: readonly (readonly [boolean, string])[] = [
    [document.state === plan.ends, `it ended ${document.state}, not ${plan.ends}: ${document.why.reason}`],
    [document.framesBeforePlug === 0, `${document.framesBeforePlug} frames reached the peer before the plug`],
    [document.framesControl > 0, 'the positive control sent no frame, so the count says nothing'],
    [!isOpen || !isStale, 'installed is not the latest'],
    [!isOpen || Object.keys(latest).length > 0, 'no product was compared'],
    [!isOpen || servesLatest(document), `the guest's own page says: ${JSON.stringify(document.served)}`],
    [!startsTooEarly(document), 'the application started before the machine was admitted'],
    [isOpen || document.gate.linkUpAtMs === null, 'the gate opened'],
    [plan.reason === null || plan.reason.test(document.why.reason), `the reason is: ${document.why.reason}`],
    ...(plan.bootsNewKernel ? kernelChecks(document) : []),
    ...(plan.isConfigured ? configuredChecks(document) : []),
  ];
  return checks.filter(([isKept]) => !isKept).map(([, words]) => words);
}

function servesLatest({ served, latest }: DemoDocument): boolean {
  return served !== null && Object.entries(latest).every(([product, version]) => served[product] === version);
}

/** The guest tells seconds, cut off, by a clock that QEMU sets to a second. */
const GUEST_CLOCK_MS = 2_000;

function startsTooEarly({ applicationStartedMs, gate }: DemoDocument): boolean {
  if (applicationStartedMs === null || gate.confirmedAtMs === null) return false;
  return applicationStartedMs + GUEST_CLOCK_MS < gate.confirmedAtMs;
}

function kernelChecks({ kernel, timelineMs }: DemoDocument): readonly (readonly [boolean, string])[] {
  const after = kernel?.after ?? null;
  return [
    [after !== null, 'nobody said which kernel runs in the end'],
    [after !== kernel?.before, `the kernel is still ${kernel?.before}`],
    [timelineMs.rebooting !== undefined, 'the VM was not rebooted'],
  ];
}

function configuredChecks({ configured }: DemoDocument): readonly (readonly [boolean, string])[] {
  const { probesBeforePlug = 0, answersBeforePlug = 0, answersAfterPlug = 0, items = [] } = configured ?? {};
  return [
    [probesBeforePlug > 0, 'nobody asked for the configured address before the plug'],
    [answersBeforePlug === 0, `${answersBeforePlug} questions were answered before the plug`],
    [answersAfterPlug > 0, 'the configured file was not served at the configured address after the plug'],
    [items.length === 3, `the evidence names ${items.length} configured items, not 3`],
  ];
}
