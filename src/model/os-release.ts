// Reads os-release(5). Without Node: the guest agent uses it too.
import { NAME_CHARS_MAX } from '../base/limits.ts';
import type { Os } from './inventory.ts';

/** What the file says of the system; lines NAME=value, the value perhaps in quotes. Architecture and kernel stand elsewhere. */
export function readOsRelease(text: string): Pick<Os, 'id' | 'versionId' | 'codename'> {
  const fields = new Map<string, string>();
  for (const line of text.split('\n')) {
    const [, name, value] = /^([A-Z_]+)=["']?([^"']*)["']?\s*$/.exec(line) ?? [];
    if (name !== undefined && value !== undefined) fields.set(name, value.slice(0, NAME_CHARS_MAX));
  }
  const codename = fields.get('VERSION_CODENAME');
  // os-release(5): ID defaults to `linux`.
  return {
    id: fields.get('ID') || 'linux',
    versionId: fields.get('VERSION_ID') ?? '',
    ...(codename ? { codename } : {}),
  };
}
