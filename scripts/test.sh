#!/bin/sh
# Runs checks and all tests: test.sh [FILE...]. Sets up by itself what they need. PRATIQUE_TEST_FULL=1 runs every cell of the large matrices.
set -eu
. "$(dirname "$0")/node.sh"
sh "$ROOT/scripts/setup.sh"
PATH="$(dirname "$NODE"):$PATH"; export PATH
if [ $# = 0 ]; then set -- all; fi
exec "$NODE" "$ROOT/scripts/run-tests.ts" "$@"
