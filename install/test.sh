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
exec .venv/bin/python -m pytest "$@"
