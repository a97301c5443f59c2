#!/bin/sh
# Installs the Azurite emulator that the tests of the Azure store talk to, into .work/azurite (or the folder given).
# Running it again does nothing. Three heavy parts that blobs never touch (telemetry, SQL drivers) are replaced by an
# empty package, and no lock file is written, so that no registry's address ends up in a file.
set -eu

version=3.35.0
folder="${1:-$(cd "$(dirname "$0")/.." && pwd)/.work/azurite}"
entry="$folder/node_modules/azurite/dist/src/blob/main.js"
stamp="$folder/installed-$version"

if [ -e "$stamp" ] && [ -e "$entry" ]; then
    echo "azurite $version is already in $folder"
    exit 0
fi

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo "cannot install azurite: node and npm are not on PATH (install Node.js 18 or newer)" >&2
    exit 1
fi
if [ "$(node -p 'process.versions.node.split(".")[0]')" -lt 18 ]; then
    echo "cannot install azurite: node $(node --version) is too old (18 or newer is needed)" >&2
    exit 1
fi

mkdir -p "$folder/stub"
cat >"$folder/stub/package.json" <<'JSON'
{"name": "stub", "version": "1.0.0", "main": "index.js"}
JSON
# Whatever is read from it or called on it is again the same nothing.
cat >"$folder/stub/index.js" <<'JS'
const nothing = new Proxy(function () {}, { get: (_, key) => (key === Symbol.toPrimitive ? () => "" : nothing), apply: () => nothing, construct: () => nothing });
module.exports = nothing;
JS
cat >"$folder/package.json" <<JSON
{
  "private": true,
  "dependencies": {"azurite": "$version"},
  "overrides": {"applicationinsights": "file:./stub", "mysql2": "file:./stub", "tedious": "file:./stub"}
}
JSON

cd "$folder"
npm install --no-audit --no-fund --no-update-notifier --no-package-lock --ignore-scripts --prefer-offline --loglevel=error
test -e "$entry"
touch "$stamp"
echo "azurite $version installed in $folder"
