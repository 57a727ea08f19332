#!/bin/sh
# The whole truth, locally and in CI: format, lint, import cycles, types, tidy rules, unit tests.
set -eu
. "$(dirname "$0")/node.sh"
cd "$ROOT"
PATH="$(dirname "$NODE"):$PATH"; export PATH
"$BIOME" check --error-on-warnings .
"$NODE" node_modules/typescript/bin/tsc --noEmit
"$NODE" --test --test-reporter=dot 'src/**/*.test.ts' 'proxy/**/*.test.ts' 'guest-agent/**/*.test.ts' 'test/tidy*.test.ts'
