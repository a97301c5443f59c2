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

parts=3
part() { .venv/bin/python -m pytest --shard "$1/$parts" -o "cache_dir=.pytest_cache/$1"; }

# A test that fails beside the other parts and passes by itself is told as what it is: a bug of the test or worse.
again() {
    say "part $1: what failed is run once more by itself"
    .venv/bin/python -m pytest -o "cache_dir=.pytest_cache/$1" --lf --lfnf=none || return 1
    say "part $1: FLAKY: the tests above failed once and passed by themselves; each is a bug to be mended"
}

# Most tests wait for processes of theirs: parts side by side take little more than the share of one.
output=$(mktemp -d)
say "running the tests in $parts parts side by side; the others' output comes at the end"
part 2 >"$output/2" 2>&1 &
second=$!
part 3 >"$output/3" 2>&1 &
third=$!
trap 'kill "$second" "$third" 2>/dev/null; rm -rf "$output"; exit 130' INT TERM
failed=""
part 1 || failed="1"
wait "$second" || failed="$failed 2"
wait "$third" || failed="$failed 3"
cat "$output/2" "$output/3"
rm -rf "$output"
for number in $failed; do again "$number"; done
