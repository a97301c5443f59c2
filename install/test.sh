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

# Most tests wait for processes of theirs: two halves side by side take little more than half the time.
half=$(mktemp)
say "running the tests in two halves; the second one's output comes at the end"
.venv/bin/python -m pytest --shard 2/2 >"$half" 2>&1 &
other=$!
trap 'kill "$other" 2>/dev/null; rm -f "$half"; exit 130' INT TERM
status=0
.venv/bin/python -m pytest --shard 1/2 || status=$?
wait "$other" || status=$?
cat "$half"
rm -f "$half"
exit "$status"
