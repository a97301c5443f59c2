#!/bin/sh
# From a fresh clone to a real mounted folder. Run it again whenever you like; an ordinary user or root may run it.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/install/ground.sh"

work="$root/.work/quickstart"
container="$work/mnist-data"
target="$work/mnt/mnist"

write_config() {
    mkdir -p "$work"
    cat >"$work/amlmount.yaml" <<YAML
stores:
  sample: {type: local, path: ./mnist-data}
mounts:
  mnist:
    target: "$target"
    source: sample
    profile: epochs
YAML
}

# A world of its own, so that the quick start never meets a daemon of yours. The socket's path must be short.
write_world() {
    run="${XDG_RUNTIME_DIR:-/tmp}/amlmount-quickstart-$(id -u)"
    cat >"$work/world" <<WORLD
PATH="$root/.venv/bin:\$PATH"
AMLMOUNT_CONFIG="$work/amlmount.yaml"
AMLMOUNT_RUNTIME_DIR="$run"
AMLMOUNT_STATE_DIR="$work/state"
AMLMOUNT_CACHE_ROOT="$work/cache"
export PATH AMLMOUNT_CONFIG AMLMOUNT_RUNTIME_DIR AMLMOUNT_STATE_DIR AMLMOUNT_CACHE_ROOT
WORLD
}

show_tree() {
    (cd "$1" && find . -maxdepth 2 | sort | sed -e 's|[^/]*/|    |g')
}

show_next() {
    cat <<NEXT

The folder is mounted. Go on in this shell with:
    . .work/quickstart/world
    amlmount ps
    ls "$target/MNIST_FLAT"
    amlmount doctor
    \$EDITOR "\$AMLMOUNT_CONFIG"       # what is mounted; 'amlmount init' shows all that can stand in it
Take it down with:
    . .work/quickstart/world && amlmount down
NEXT
}

# shellcheck disable=SC2119 # it needs no more commands than the usual
ensure_system
make_venv
install_into_venv quickstart -e . pillow
say "making a sample container with 400 images"
"$root/.venv/bin/python" "$root/install/make_sample.py" "$container"
write_config
write_world
# shellcheck disable=SC1091 # written above
. "$work/world"
say "amlmount up"
amlmount up
amlmount ps
say "what is in it"
show_tree "$target"
say "comparing every file with its source"
diff -r "$container" "$target"
say "all $(find "$target" -type f | wc -l | tr -d ' ') files are equal"
show_next
