# Sourced by the other scripts: sets ROOT, NODE (the project's pinned Node) and BIOME, and installs the Node packages when the
# lockfile has changed since they were last installed. The machine's own Node only has to be able to run npm.
ROOT=$(cd "$(dirname "$0")/.." && pwd)
case "$(uname -m)" in
  x86_64) cpu=x64 ;;
  aarch64) cpu=arm64 ;;
  *) echo "pratique: no pinned Node for the architecture $(uname -m); supported are x86_64 and aarch64" >&2; exit 3 ;;
esac
NODE="$ROOT/node_modules/node-linux-$cpu/bin/node"
BIOME="$ROOT/node_modules/@biomejs/cli-linux-$cpu/biome"
stamp="$ROOT/node_modules/.pratique-lock"
if ! [ -x "$NODE" ] || ! cmp -s "$ROOT/package-lock.json" "$stamp"; then
  echo "pratique: installing the Node packages of package-lock.json" >&2
  (cd "$ROOT" && npm ci --no-audit --no-fund --loglevel=error >&2) || {
    echo "pratique: npm ci failed; run it by hand in $ROOT to see why" >&2; exit 3; }
  cp "$ROOT/package-lock.json" "$stamp"
fi
