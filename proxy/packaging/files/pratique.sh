#!/bin/sh
# The program pratique, with the Node that it was tried with. What Node compiled is not kept: nothing is written below /usr.
NODE_DISABLE_COMPILE_CACHE=1
export NODE_DISABLE_COMPILE_CACHE
unset NODE_OPTIONS NODE_PATH
exec /usr/lib/pratique/bin/node /usr/lib/pratique/lib/main.js "$@"
