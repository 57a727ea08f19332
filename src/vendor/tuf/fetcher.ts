// Gives tuf-js our own fetch: bounded in bytes, time and structure before a byte of it is parsed by anybody else.
import { BaseFetcher } from 'tuf-js';
import { DownloadHTTPError } from 'tuf-js/dist/error.js';
import { HttpError, type HttpFetch } from '../../base/http-fetch.ts';
import { TUF_OBJECT_FIELDS_MAX } from '../../base/limits.ts';
import { VendorError } from '../errors.ts';

export class MetadataFetcher extends BaseFetcher {
  readonly #http: HttpFetch;
  readonly #signal: AbortSignal;
  #failure: unknown = null;

  constructor(http: HttpFetch, signal: AbortSignal) {
    super();
    this.#http = http;
    this.#signal = signal;
  }

  /** Why the last download failed, null when it did not: tuf-js turns some of our errors into text. */
  get failure(): unknown {
    return this.#failure;
  }

  override async downloadBytes(url: string, maxLength: number): Promise<Buffer> {
    this.#failure = null;
    try {
      const { bytes } = await this.#http.fetchBytes(url, { sizeBytesMax: maxLength, signal: this.#signal });
      refuseHugeObjects(bytes, url);
      return Buffer.from(bytes);
    } catch (error) {
      this.#failure = error;
      // tuf-js asks for the root after the newest until it is not there (TUF 5.3.3), and knows that by this class.
      if (error instanceof HttpError && error.status !== null) throw new DownloadHTTPError(error.message, error.status);
      throw error;
    }
  }

  override async fetch(url: string): Promise<ReadableStream<Uint8Array<ArrayBuffer>>> {
    throw new VendorError('internal/tuf-fetch', `tuf-js asked to stream ${url}, which it does only for targets`);
  }
}

/** The first guard on unverified metadata: see TUF_OBJECT_FIELDS_MAX. What is no JSON is left to tuf-js to refuse. */
function refuseHugeObjects(bytes: Uint8Array, url: string): void {
  const waiting: unknown[] = [parsed(bytes)];
  for (let value = waiting.pop(); value !== undefined; value = waiting.pop()) {
    if (value === null || typeof value !== 'object') continue;
    const fields = Object.values(value);
    if (!Array.isArray(value) && fields.length > TUF_OBJECT_FIELDS_MAX) {
      const name = new URL(url).pathname.split('/').at(-1);
      throw new VendorError(
        'vendor-ill/tuf-too-many',
        `the metadata file ${name} has an object of ${fields.length} fields; ${TUF_OBJECT_FIELDS_MAX} are the limit`,
      );
    }
    for (const field of fields) if (field !== null && typeof field === 'object') waiting.push(field);
  }
}

function parsed(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch {
    return null;
  }
}
