#!/bin/sh
# Makes sure that the Debian packages of debian-packages.txt are installed. As root, or with sudo that asks for no password, it
# installs what is missing after printing the list; otherwise it prints the one command to run and ends with 3. Nothing missing: silent.
set -eu
list=$(dirname "$0")/debian-packages.txt

if ! command -v dpkg-query >/dev/null; then
  echo "pratique: this is no Debian system; install what $list names by your own means" >&2
  exit 3
fi
case $(uname -m) in
  x86_64) arch=amd64 ;;
  aarch64) arch=arm64 ;;
  *) arch=$(uname -m) ;;
esac

wanted=
while read -r name only _; do
  case $name in '' | '#'*) continue ;; esac
  case $only in
    "[$arch]") ;;
    '['*']') continue ;;
  esac
  wanted="$wanted $name"
done <"$list"

# dpkg-query prints a line for each package it knows and complains about the others.
# shellcheck disable=SC2086 # the names are words
present=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null || true)
missing=
for name in $wanted; do
  case "
$present
" in
    *"
installed $name
"*) ;;
    *) missing="$missing $name" ;;
  esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root='sudo -n'
else
  echo 'pratique: these Debian packages are missing; install them with this command, then try again:' >&2
  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends$missing" >&2
  exit 3
fi

echo 'pratique: installing the missing Debian packages:' >&2
for name in $missing; do grep "^$name " "$list" | sed 's/^/  /' >&2; done
# Lists older than a day may name packages that the mirror no longer has.
lists=/var/lib/apt/lists
if [ -z "$(find "$lists" -maxdepth 1 -name '*Packages*' -mtime -1 2>/dev/null | head -n 1)" ]; then
  $as_root apt-get -qq update >&2 || echo 'pratique: apt-get update failed; trying with the lists that are there' >&2
fi
install="env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends"
# shellcheck disable=SC2086 # as above
if $as_root $install $missing >&2; then exit 0; fi
# shellcheck disable=SC2086 # as above
if $as_root apt-get -qq update >&2 && $as_root $install $missing >&2; then exit 0; fi
echo "pratique: apt-get could not install$missing; its words above say why" >&2
exit 3
