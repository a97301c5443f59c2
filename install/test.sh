#!/bin/sh
# Sets up what the tests need and runs them all: lint, types, and tests on real mounts, a real Azurite, real processes.
# Arguments go to pytest: `sh install/test.sh tests/test_vfs.py -k names`.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/install/ground.sh"

ensure_system openssl
make_venv
install_into_venv dev -e . --group dev
ensure_node
sh "$root/install/azurite.sh"

cd "$root"
if [ "$#" -gt 0 ]; then exec .venv/bin/python -m pytest "$@"; fi

half() { .venv/bin/python -m pytest --shard "$1/2" -o "cache_dir=.pytest_cache/$1"; }

# A test that fails beside the other half and passes by itself is told as what it is: a bug of the test or worse.
again() {
    say "half $1: what failed is run once more by itself"
    .venv/bin/python -m pytest -o "cache_dir=.pytest_cache/$1" --lf --lfnf=none || return 1
    say "half $1: FLAKY: the tests above failed once and passed by themselves; each is a bug to be mended"
}

# Most tests wait for processes of theirs: two halves side by side take little more than half the time.
output=$(mktemp)
say "running the tests in two halves; the second one's output comes at the end"
half 2 >"$output" 2>&1 &
other=$!
trap 'kill "$other" 2>/dev/null; rm -f "$output"; exit 130' INT TERM
first=0
second=0
half 1 || first=$?
wait "$other" || second=$?
cat "$output"
rm -f "$output"
if [ "$first" -ne 0 ]; then again 1; fi
if [ "$second" -ne 0 ]; then again 2; fi
