#!/bin/sh
# Installs amlmount on this machine, or upgrades it: its own environment under /opt/amlmount, blobfuse2, the service.
# Needs root, asks nothing, may be run again at any time. `sh install.sh --help` shows the options.
set -eu

home=/opt/amlmount
from='' offline='' upgrade='' purge='' verb=install service=start

usage() {
    cat <<'USAGE'
usage: install.sh [--from WHAT] [--offline DIR] [--upgrade] [--no-start] [--no-service] [OPTIONS OF amlmount install]
       install.sh --uninstall [--purge]

  --from WHAT     a folder with the sources, a wheel, or what pip understands (amlmount==1.2);
                  left out: the sources this script lies in, else amlmount from pip's index
  --offline DIR   no network: wheels and .deb files lie in DIR
  --upgrade       install again, even if the same is there
  --no-start      set the service up, but do not start it
  --no-service    no service
  --uninstall     take everything back; configuration, journals and caches stay, unless --purge
Options of `amlmount install`: --engine blobfuse2|python, --version X, --channel, --repo-url URL, --key FILE
USAGE
}

say() { printf '==> %s\n' "$*"; }
stop() {
    printf 'error: %s\n' "$1" >&2
    if [ -n "${2-}" ]; then printf 'hint: %s\n' "$2" >&2; fi
    exit 2
}
have() { command -v "$1" >/dev/null 2>&1; }

# --- options -----------------------------------------------------------------------------------------------------

value() { [ "$1" -ge 2 ] || stop "cannot read $2: it needs a value" "sh install.sh --help"; }
passed='' # options for `amlmount install`, one a line
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --from) value $# "$1" && from=$2 && shift ;;
    --offline) value $# "$1" && offline=$(CDPATH='' cd -- "$2" && pwd) && shift ;;
    --upgrade) upgrade=yes ;;
    --no-start) service=yes ;;
    --no-service) service=no ;;
    --uninstall) verb=uninstall ;;
    --purge) purge=yes ;;
    --engine | --version | --channel | --repo-url | --key | --lock-timeout)
        value $# "$1"
        passed="$passed$1
$2
"
        shift
        ;;
    *) stop "cannot understand '$1'" "sh install.sh --help" ;;
    esac
    shift
done
[ "$(id -u)" -eq 0 ] || stop "cannot $verb: that takes root" "sudo sh install.sh"

# --- Python ------------------------------------------------------------------------------------------------------

new_enough() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
        if new_enough "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# What apt brings here is remembered, so that --uninstall can take it back.
apt_install() {
    have apt-get || stop "cannot install $*: there is no apt-get" "install Python 3.11 or newer, or uv"
    say "installing $* (apt-get)"
    installed >"$home/.before"
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 update >"$home/apt.log" 2>&1 ||
        say "apt-get update failed, going on: $(tail -n 1 "$home/apt.log")"
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold \
        install --no-install-recommends "$@" >"$home/apt.log" 2>&1 ||
        stop "cannot install $*: $(tail -n 2 "$home/apt.log")" "install Python 3.11 or newer, or uv"
    installed | comm -13 "$home/.before" - >>"$home/.packages"
    rm -f "$home/.before" "$home/apt.log"
}
# shellcheck disable=SC2016 # dpkg's own variables
installed() { dpkg-query -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort -u; }

# Debian 12, Ubuntu 24.04 and newer have a python3 that is new enough, Ubuntu 22.04 has python3.11 beside its own.
make_environment() {
    if have uv && [ -z "$offline" ]; then
        say "making an environment with uv"
        uv venv --quiet --python '>=3.11' "$1"
        return
    fi
    if ! python=$(find_python); then
        if python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            apt_install python3.11 python3.11-venv
        else
            apt_install python3 python3-venv
        fi
        python=$(find_python) || stop "cannot find Python 3.11 or newer" \
            "Ubuntu 20.04 has none: install uv and run this again"
    fi
    say "making an environment with $python"
    if "$python" -c 'import ensurepip' >/dev/null 2>&1; then
        "$python" -m venv "$1"
    elif wheel=$(find_pip_wheel); then
        "$python" -m venv --without-pip "$1"
        PYTHONPATH=$wheel "$1/bin/python" -m pip install -q --no-index --find-links "$offline" pip
    else
        apt_install "$(basename "$(readlink -f "$python")")-venv"
        "$python" -m venv "$1"
    fi
}

find_pip_wheel() {
    [ -n "$offline" ] || return 1
    for wheel in "$offline"/pip-*.whl; do
        [ -e "$wheel" ] && printf '%s\n' "$wheel" && return 0
    done
    return 1
}

# --- amlmount under /opt -----------------------------------------------------------------------------------------

# The sources we lie in, else the index.
find_source() {
    root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." 2>/dev/null && pwd)
    if [ -n "$from" ]; then
        if [ -e "$from" ]; then from=$(readlink -f "$from"); fi
    elif [ -e "$root/pyproject.toml" ] && [ -d "$root/src/amlmount" ]; then
        from=$root
    else
        from=amlmount
    fi
}

# What would be installed, as one line that changes when it does.
identity() {
    if [ -d "$from" ]; then
        find "$from/src" "$from/systemd" "$from/templates" "$from/pyproject.toml" -type f ! -name '*.pyc' \
            -exec cksum {} + | sort | cksum
    elif [ -f "$from" ]; then
        cksum "$from"
    else
        printf '%s\n' "$from"
    fi
}

install_environment() {
    find_source
    identity=$(identity)
    if [ -z "$upgrade" ] && [ -x "$home/current/bin/amlmount" ] &&
        [ "$(cat "$home/current/.identity" 2>/dev/null)" = "$identity" ]; then
        say "amlmount is there: $("$home/current/bin/amlmount" --version)"
        return
    fi
    mkdir -p "$home/versions"
    new="$home/versions/$(date -u +%Y%m%dT%H%M%S)-$$"
    trap 'rm -rf "$new"' EXIT
    make_environment "$new"
    say "installing $from"
    set --
    if [ -n "$offline" ]; then set -- "$@" --no-index --find-links "$offline"; fi
    if [ -e "$from/install/constraints.txt" ]; then set -- "$@" -c "$from/install/constraints.txt"; fi
    # Not inside the sources: building writes there.
    if [ -e "$new/bin/pip" ]; then
        (cd / && "$new/bin/python" -m pip install -q --disable-pip-version-check "$@" "$from")
    else
        (cd / && uv pip install --quiet --python "$new/bin/python" "$@" "$from")
    fi
    printf '%s\n' "$identity" >"$new/.identity"
    "$new/bin/amlmount" --version
    trap - EXIT
    before=$(readlink "$home/current" 2>/dev/null || true)
    switch_to "versions/$(basename "$new")"
    mkdir -p "$home/bin"
    ln -sfn ../current/bin/amlmount "$home/bin/amlmount"
}

# Every reader sees the old or the new.
switch_to() {
    ln -sfn "$1" "$home/.current"
    mv -T "$home/.current" "$home/current"
}

# A failed installation leaves what was there before.
go_back() {
    if [ -z "${new-}" ]; then return; fi
    if [ -n "$before" ]; then
        switch_to "$before"
        say "back to $("$home/bin/amlmount" --version)"
        rm -rf "$new"
    elif [ ! -e /var/lib/amlmount/install.json ]; then
        remove_environment
    fi
}

# Mounts go on being served by what they were started with; it goes when they do.
remove_old_versions() {
    keep=$(readlink -f "$home/current")
    for folder in "$home"/versions/*; do
        if [ "$folder" = "$keep" ]; then continue; fi
        if grep -qsaF "$folder/" /proc/[0-9]*/cmdline; then
            say "mounts are still served by $("$folder/bin/amlmount" --version) (systemctl restart amlmount ends that)"
        else
            rm -rf "$folder"
        fi
    done
}

remove_environment() {
    if [ -s "$home/.packages" ] && have dpkg; then
        say "removing the packages that came with it"
        # shellcheck disable=SC2046 # one word a package
        dpkg --purge $(cat "$home/.packages") >/dev/null || say "some are needed by others, they stay"
    fi
    rm -rf "$home"
}

# --- the two verbs -----------------------------------------------------------------------------------------------

do_install() {
    mkdir -p "$home"
    install_environment
    if [ -n "$offline" ]; then
        passed="$passed--offline
$offline
"
    fi
    say "amlmount install"
    IFS='
'
    # shellcheck disable=SC2086 # one line a word
    if ! "$home/bin/amlmount" install --service "$service" $passed; then
        unset IFS
        go_back
        exit 1
    fi
    unset IFS
    remove_old_versions
    say "done: $("$home/bin/amlmount" --version). Next: amlmount init, amlmount up"
}

do_uninstall() {
    if [ -x "$home/bin/amlmount" ]; then "$home/bin/amlmount" uninstall; fi
    remove_environment
    if [ -n "$purge" ]; then
        rm -rf /etc/amlmount /var/lib/amlmount /var/cache/amlmount
    elif [ -e /etc/amlmount ] || [ -e /var/lib/amlmount ]; then
        say "configuration and data stay in /etc/amlmount, /var/lib/amlmount and /var/cache/amlmount (--purge)"
    fi
    say "amlmount has gone"
}

"do_$verb"
