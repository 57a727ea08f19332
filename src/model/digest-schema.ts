// The schema of a digest, apart from ids because digests are not ids.
import { Type } from 'typebox';
import type { Digest } from '../base/digest-text.ts';
import { DIGEST_PATTERN } from './ids.ts';

export const DigestSchema = Type.Unsafe<Digest>(Type.String({ pattern: DIGEST_PATTERN }));
