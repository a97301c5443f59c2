"""Every path the installer reads or writes, in one place."""

RECORD = "/var/lib/amlmount/install.json"
CONFIG_DIR = "/etc/amlmount"
STATE_DIR = "/var/lib/amlmount"
CACHE_DIR = "/var/cache/amlmount"
HOME = "/opt/amlmount"
PROGRAM = f"{HOME}/bin/amlmount"

OUR_PACKAGES = ("blobfuse2", "blobfuse2-preview", "fuse3")

KEYRINGS = "/etc/apt/keyrings"
KEY = f"{KEYRINGS}/amlmount-microsoft.asc"
SOURCE = "/etc/apt/sources.list.d/amlmount-microsoft.list"
PIN = "/etc/apt/preferences.d/amlmount-blobfuse2"

FUSE_CONF = "/etc/fuse.conf"
UPDATEDB_CONF = "/etc/updatedb.conf"
SYSCTL = "/etc/sysctl.d/60-amlmount.conf"
LIMITS = "/etc/security/limits.d/60-amlmount.conf"

UNIT_NAME = "amlmount.service"
GROUP = "amlmount"
UNIT = f"/etc/systemd/system/{UNIT_NAME}"
MOUNTED = "/etc/systemd/system/amlmount-mounted.service"
MOUNTED_ONE = "/etc/systemd/system/amlmount-mounted@.service"
TARGET = "/etc/systemd/system/amlmount.target"
USER_UNIT = f"/etc/systemd/user/{UNIT_NAME}"
UNITS = {
    UNIT: "amlmount.service",
    MOUNTED: "amlmount-mounted.service",
    MOUNTED_ONE: "amlmount-mounted@.service",
    TARGET: "amlmount.target",
    USER_UNIT: "user/amlmount.service",
}
WANTED_BY = f"/etc/systemd/system/multi-user.target.wants/{UNIT_NAME}"
SYSUSERS = "/etc/sysusers.d/amlmount.conf"
TMPFILES = "/etc/tmpfiles.d/amlmount.conf"
COMMAND = "/usr/local/bin/amlmount"
MOUNT_HELPER = "/sbin/mount.amlmount"
COMPLETIONS = {
    "bash": "/usr/local/share/bash-completion/completions/amlmount",
    "zsh": "/usr/local/share/zsh/site-functions/_amlmount",
    "fish": "/usr/share/fish/vendor_completions.d/amlmount.fish",
}

FILES = (
    KEY,
    SOURCE,
    PIN,
    FUSE_CONF,
    UPDATEDB_CONF,
    SYSCTL,
    LIMITS,
    *UNITS,
    SYSUSERS,
    TMPFILES,
    MOUNT_HELPER,
    *COMPLETIONS.values(),
)
LINKS = (COMMAND, WANTED_BY)
DIRECTORIES = (KEYRINGS, CONFIG_DIR, STATE_DIR, CACHE_DIR)
