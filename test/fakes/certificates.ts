// Authorities and certificates of tests' own, made by openssl when they are needed.
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export type Certificate = { readonly cert: string; readonly key: string };

export type Authority = {
  /** PEM, for whoever is to believe it; and where it lies. */
  readonly ca: string;
  readonly caPath: string;
  /** A certificate for these names and addresses. */
  readonly issue: (...names: readonly string[]) => Certificate;
};

const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

/** An authority that nobody knows yet; its files lie in the folder. */
export function makeAuthority(folder: string, name: string): Authority {
  const openssl = (...args: readonly string[]) => void execFileSync('openssl', args, { stdio: 'ignore' });
  const place = (file: string) => join(folder, `${name}-${file}`);
  const [caKey, caPath] = [place('ca.key'), place('ca.pem')];
  openssl('req', '-x509', ...KEY, '-keyout', caKey, '-out', caPath, '-subj', `/CN=${name}`, '-days', '30');
  let issued = 0;
  return {
    ca: readFileSync(caPath, 'utf8'),
    caPath,
    issue: (...names) => {
      issued += 1;
      const [key, request, cert, extensions] = ['key', 'csr', 'pem', 'ext'].map((end) => place(`${issued}.${end}`)) as [
        string,
        string,
        string,
        string,
      ]; // The cast holds: four endings, four paths.
      const kinds = names.map((each) => `${/^[\d.]+$/.test(each) ? 'IP' : 'DNS'}:${each}`);
      writeFileSync(extensions, `subjectAltName=${kinds.join(',')}\n`);
      openssl('req', ...KEY, '-keyout', key, '-out', request, '-subj', `/CN=${names[0] ?? 'none'}`);
      const signer = ['-CA', caPath, '-CAkey', caKey, '-set_serial', String(issued), '-extfile', extensions];
      openssl('x509', '-req', '-in', request, '-out', cert, '-days', '30', ...signer);
      return { cert: readFileSync(cert, 'utf8'), key: readFileSync(key, 'utf8') };
    },
  };
}
