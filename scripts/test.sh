#!/bin/sh
# Runs all tests: test.sh [FILE...]. Sets up by itself what they need. PRATIQUE_TEST_FULL=1 runs every cell of the large matrices.
set -eu
. "$(dirname "$0")/node.sh"
cd "$ROOT"
sh scripts/setup.sh
PATH="$(dirname "$NODE"):$PATH"; export PATH
if [ $# -gt 0 ]; then exec "$NODE" --test "$@"; fi
exec "$NODE" --test 'src/**/*.test.ts' 'proxy/**/*.test.ts' 'guest-agent/**/*.test.ts' 'images/**/*.test.ts' \
  'scripts/**/*.test.ts' 'test/**/*.test.ts'
