// Draws what a terminal showed as an SVG: reads text with SGR colour codes, as `tmux capture-pane -e -p` gives it, from stdin.
import { text } from 'node:stream/consumers';

/** Widths and heights in SVG units: a cell is what most monospaced fonts make of 14 units. */
const CELL = { width: 8.4, height: 20, fontSize: 14 } as const;
const EDGE = { side: 18, top: 44, bottom: 16 } as const;

/** One dark card for light and dark pages. By SGR number (ECMA-48, 8.3.117). */
const PALETTE: Readonly<Record<number, string>> = {
  30: '#484f58',
  31: '#ff7b72',
  32: '#56d364',
  33: '#e3b341',
  34: '#79c0ff',
  35: '#d2a8ff',
  36: '#56d4dd',
  37: '#e6edf3',
};
const PAPER = '#0d1117';
const INK = '#e6edf3';
const INK_DIM = '#8b949e';

type Look = { readonly colour: string | null; readonly isBold: boolean; readonly isDim: boolean };
type Piece = { readonly column: number; readonly text: string; readonly look: Look };

const PLAIN: Look = { colour: null, isBold: false, isDim: false };

/** The look after one SGR sequence; what it does not know changes nothing. */
function lookAfter(before: Look, codes: string): Look {
  let look = before;
  for (const word of codes.split(';')) look = lookAfterCode(look, Number(word));
  return look;
}

function lookAfterCode(look: Look, code: number): Look {
  if (code === 0) return PLAIN;
  if (code === 1) return { ...look, isBold: true };
  if (code === 2) return { ...look, isDim: true };
  if (code === 22) return { ...look, isBold: false, isDim: false };
  if (code === 39) return { ...look, colour: null };
  const colour = PALETTE[code >= 90 ? code - 60 : code];
  return colour === undefined ? look : { ...look, colour };
}

/** The lines as pieces of one look each; a look goes on over the end of a line. */
export function readTerminal(captured: string): readonly (readonly Piece[])[] {
  let look = PLAIN;
  return captured
    .trimEnd()
    .split('\n')
    .map((line) => {
      const pieces: Piece[] = [];
      let column = 0;
      // biome-ignore lint/suspicious/noControlCharactersInRegex: the escape character is what begins a sequence.
      for (const part of line.split(/(\u001b\[[0-9;]*m)/)) {
        const codes = part.startsWith('\u001b[') ? part.slice(2, -1) : null;
        if (codes !== null) look = lookAfter(look, codes);
        else if (part !== '') {
          pieces.push({ column, text: part, look });
          column += [...part].length;
        }
      }
      return pieces;
    });
}

/** The picture: a card with a title over the lines. */
export function drawTerminal(captured: string, title: string): string {
  const lines = readTerminal(captured);
  const columns = Math.max(...lines.flat().map((piece) => piece.column + [...piece.text].length), title.length + 12);
  const width = Math.ceil(columns * CELL.width + 2 * EDGE.side);
  const height = lines.length * CELL.height + EDGE.top + EDGE.bottom;
  const dots = ['#ff5f57', '#febc2e', '#28c840'].map(
    (colour, index) => `<circle cx="${EDGE.side + 6 + index * 18}" cy="20" r="5.5" fill="${colour}"/>`,
  );
  const body = lines.flatMap((pieces, row) =>
    pieces.filter((piece) => piece.text.trim() !== '').map((piece) => drawPiece(piece, row)),
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img">`,
    `<title>${escapeXml(title)}</title>`,
    `<rect width="${width}" height="${height}" rx="8" fill="${PAPER}" stroke="#30363d"/>`,
    ...dots,
    `<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="${CELL.fontSize}" xml:space="preserve">`,
    `<text x="${width / 2}" y="25" fill="${INK_DIM}" text-anchor="middle">${escapeXml(title)}</text>`,
    ...body,
    '</g>',
    '</svg>',
    '',
  ].join('\n');
}

/** `textLength` keeps columns straight whatever font the reader has. */
function drawPiece({ column, text: said, look }: Piece, row: number): string {
  const lead = said.length - said.trimStart().length;
  const shown = said.trim();
  const x = (EDGE.side + (column + lead) * CELL.width).toFixed(1);
  const y = EDGE.top + row * CELL.height + CELL.fontSize;
  const length = ([...shown].length * CELL.width).toFixed(1);
  const weight = look.isBold ? ' font-weight="bold"' : '';
  const fill = look.colour ?? (look.isDim ? INK_DIM : INK);
  return `<text x="${x}" y="${y}" textLength="${length}" fill="${fill}"${weight}>${escapeXml(shown)}</text>`;
}

function escapeXml(said: string): string {
  return said.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}

if (import.meta.main) process.stdout.write(drawTerminal(await text(process.stdin), process.argv[2] ?? 'terminal'));
