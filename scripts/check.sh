#!/bin/sh
# The whole truth before a commit: format, lint, import cycles, types, tidy rules, unit tests.
set -eu
. "$(dirname "$0")/node.sh"
sh "$ROOT/scripts/setup.sh"
PATH="$(dirname "$NODE"):$PATH"; export PATH
exec "$NODE" "$ROOT/scripts/run-tests.ts" check
