#!/bin/sh
# Runs a TypeScript file of this checkout on the pinned Node: run.sh FILE [ARGUMENT...]
set -eu
. "$(dirname "$0")/node.sh"
file=$1; shift
exec "$NODE" "$ROOT/$file" "$@"
