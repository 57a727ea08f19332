// Why a license does not cover a VM, and what to do about it: one sentence each (X8).
import { printable } from '../base/printable.ts';
import type { Reason } from './why.ts';

const SEATS = 'release one (pratique license leases; pratique license release --vm VM) or buy more';

/** The license server's codes, and this host's own (license-check.ts), in words. */
export function explainLicense(license: string, code: string, retry: string): Reason {
  const name = printable(license);
  const said = (words: string) => `The license ${name} does not cover this VM: ${words} (${printable(code)}).`;
  const then = (step: string) => `${step}; then: ${retry}`;
  switch (code) {
    case 'NO_LICENSE':
      return {
        reason: said('this host has no such license for it'),
        next: then(`Add it: pratique license add ${name}`),
      };
    case 'NO_LEASE':
      return { reason: said('it holds no seat now'), next: `Ask for one: ${retry}` };
    case 'TOO_MANY_MACHINES':
    case 'NO_MACHINES_LEFT':
      return { reason: said('all of its seats are taken'), next: then(`Free a seat: ${SEATS}`) };
    case 'SERVER_AWAY':
      return {
        reason: `Whether the license ${name} covers this VM cannot be known: its server does not answer (SERVER_AWAY).`,
        next: then(`Look at its server: pratique license check ${name}`),
      };
    case 'LEASE_EXPIRED':
      return {
        reason: said('its lease ran out, and its server has not answered since'),
        next: then(`Look at its server: pratique license check ${name}`),
      };
    case 'REVOKED_HERE':
      return {
        reason: said('an operator of this host has revoked it'),
        next: then(`Give a new token: pratique license rotate ${name}`),
      };
    case 'SUSPENDED':
    case 'REVOKED':
    case 'BANNED':
      return {
        reason: said('its server has ended it'),
        next: then(`Ask its vendor, then pratique license check ${name}`),
      };
    case 'EXPIRED':
    case 'OVERDUE':
      return {
        reason: said('it has run out'),
        next: then(`Renew it with its vendor, then pratique license check ${name}`),
      };
    default:
      return { reason: said('its server says no'), next: then(`Look at pratique license check ${name}`) };
  }
}
