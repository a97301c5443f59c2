#!/bin/sh
# Creation and startup script of an Azure ML compute instance: installs amlmount and brings its mounts up. It may run as
# both; the second time it takes seconds. The working directory is the script's own on the notebooks share, arguments come
# from the compute instance's definition:
#   aml-compute-instance.sh CONFIG.yaml [OPTIONS OF install.sh]
# CONFIG.yaml is copied to /etc/amlmount/conf.d. Everything on /mnt goes at every stop, so only the cache is there.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
etc=/etc/amlmount
user="${CI_LOCAL_UBUNTU_USER:-azureuser}"
# The platform ends a setup script after 15 minutes, and the compute instance's creation with it.
seconds="${AMLMOUNT_SETUP_SECONDS:-840}"
began=$(date +%s)

say() { printf '[%4ss] %s\n' "$(($(date +%s) - began))" "$*"; }
stop() {
    printf 'error: %s\n' "$1" >&2
    if [ -n "${2-}" ]; then printf 'hint: %s\n' "$2" >&2; fi
    exit 1
}
left() {
    rest=$((seconds - ($(date +%s) - began)))
    if [ "$rest" -lt 1 ]; then rest=1; fi
    printf '%s\n' "$rest"
}

# Puts standard input into a file if it is not the same already; says so only then.
put() {
    cat >"$1.new"
    if cmp -s "$1.new" "$1"; then
        rm "$1.new"
    else
        chmod 0644 "$1.new"
        mv "$1.new" "$1"
        say "wrote $1"
    fi
}

check() {
    [ "$(id -u)" -eq 0 ] || stop "cannot set up: that takes root" "as a setup script it runs as root; by hand: sudo sh $0"
    [ -d /run/systemd/system ] || stop "cannot set up: systemd does not run here"
    say "compute instance ${CI_NAME:-(unknown)} of workspace ${CI_WORKSPACE:-(unknown)}, user $user"
    if [ -e /etc/environment.sso ]; then
        say "the managed identity is in /etc/environment.sso"
    else
        say "no /etc/environment.sso: managed_identity will not work before single sign-on is switched on"
    fi
}

# Minutes pass while one cannot see what apt and pip do: somebody may be watching the log.
install_amlmount() {
    say "installing (this takes a minute or two)"
    if ! timeout "$(left)" sh "$here/install.sh" "$@" >"/var/log/amlmount-setup.log" 2>&1; then
        tail -n 20 /var/log/amlmount-setup.log >&2
        stop "cannot install amlmount" "the whole log is /var/log/amlmount-setup.log"
    fi
    say "$(tail -n 1 /var/log/amlmount-setup.log)"
}

configure() {
    mkdir -p "$etc/conf.d"
    if id "$user" >/dev/null 2>&1; then
        put "$etc/amlmount.yaml" <<YAML
# Written by aml-compute-instance.sh; what conf.d says wins.
defaults: {owner: "$user"}
YAML
    fi
    if mountpoint -q /mnt; then
        put /etc/default/amlmount <<DEFAULTS
# Written by aml-compute-instance.sh: the temporary disk. Emptied at every stop, which is what a cache may be.
AMLMOUNT_CACHE_ROOT=/mnt/amlmount/cache
DEFAULTS
        mkdir -p /mnt/amlmount && chmod 0700 /mnt/amlmount
    else
        say "/mnt is no disk of its own: the cache is in /var/cache/amlmount"
    fi
    if [ -n "$1" ]; then
        name=$(basename "$1" | sed 's/\.ya\{0,1\}ml$//')
        put "$etc/conf.d/$name.yaml" <"$1"
    fi
    amlmount --system config check
}

# The identity's secret is new at every start, and the daemon may have started before it was written.
has_old_identity() {
    pid=$(systemctl show -P MainPID amlmount.service)
    [ -r /etc/environment.sso ] && [ "$pid" -gt 1 ] || return 1
    now=$(sed -n 's/^MSI_SECRET=//p' /etc/environment.sso | tr -d '"')
    [ -n "$now" ] || return 1
    ! tr '\0' '\n' <"/proc/$pid/environ" | grep -qxF "MSI_SECRET=$now"
}

bring_up() {
    if has_old_identity; then
        say "the daemon does not have the identity's secret of this start: starting it again"
        systemctl restart amlmount.service
    fi
    systemctl start amlmount.service
    say "amlmount up"
    timeout "$(left)" amlmount --system up --timeout "$(left)s"
    amlmount --system ps
    say "done"
}

config=''
case "${1-}" in
'' | -*) ;;
*)
    config=$1
    shift
    [ -r "$config" ] || stop "cannot read '$config' in $(pwd)" "name a file that lies beside this script"
    ;;
esac
check
install_amlmount --no-start "$@"
configure "$config"
bring_up
