"""What this machine has around us: disks, clock, identity, proxies, package sources, others' mounts of blobfuse2."""

import ctypes
import os
import re
import shutil
from collections.abc import Mapping

from amlmount.config.units import rough_size
from amlmount.doctor.findings import Finding
from amlmount.installer.releases import find_release, read_os_release
from amlmount.installer.sources import read_sources
from amlmount.mounts import read_mounts

GIB = 1 << 30
# "Troubleshoot compute instances": below this it can neither be stopped nor started.
OS_DISK_FREE = 10 * GIB
LOCAL_DISKS = ("ext4", "ext3", "xfs", "btrfs", "tmpfs")
TEMPORARY_DISKS = ("/mnt", "/mnt/resource")
STA_UNSYNC = 0x40  # <sys/timex.h>
SSO_FILE = "/etc/environment.sso"
COMPUTE_INSTANCE_MARK = "/mnt/azmnt/.nbvm"
# Must not go through a proxy: ourselves, the instance metadata service, and Azure's own wire server.
DIRECT = ("127.0.0.1", "localhost", "169.254.169.254", "168.63.129.16")
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def disks(temporary: tuple[str, ...] = TEMPORARY_DISKS) -> list[Finding]:
    """Look for a temporary disk, which caches belong on, and for room on the system's."""
    # Never a look into what may hang: a FUSE or network file system may be mounted there too.
    mounted = {entry.mount_point for entry in read_mounts() if entry.fstype in LOCAL_DISKS}
    free = shutil.disk_usage("/").free
    found = []
    if free < OS_DISK_FREE:
        text = f"{rough_size(free)} are free on /: a compute instance that runs full cannot be stopped or started"
        found.append(Finding("disk /", "warn", text, "du -xh --max-depth=2 / | sort -h | tail"))
    else:
        found.append(Finding("disk /", "ok", f"{rough_size(free)} are free"))
    for path in temporary:
        if path in mounted:
            text = f"{path}: {rough_size(shutil.disk_usage(path).free)} are free, for caches; emptied at every stop"
            return [*found, Finding("temporary disk", "ok", text)]
    raw = sorted(name for name in _list("/dev/disk/azure/local/by-index"))
    if raw:
        fix = "sudo mkfs.ext4 /dev/disk/azure/local/by-index/0 && sudo mount /dev/disk/azure/local/by-index/0 /mnt"
        return [*found, Finding("temporary disk", "info", f"there is a raw NVMe disk ({', '.join(raw)}), unused", fix)]
    return [*found, Finding("temporary disk", "info", "none: caches share the system's disk")]


def clock() -> list[Finding]:
    """Ask the kernel whether somebody keeps the clock right: logins fail when it is 15 minutes off."""
    status = kernel_clock_status()
    if status is None:
        return [Finding("clock", "info", "the kernel does not say whether it is kept right")]
    if status & STA_UNSYNC:
        return [
            Finding("clock", "warn", "nobody keeps it right: logins fail when it is off", "timedatectl set-ntp true")
        ]
    return [Finding("clock", "ok", "kept right")]


def kernel_clock_status() -> int | None:
    """Return `status` of struct timex (adjtimex(2)), None if the kernel refuses."""
    # struct timex of a 64-bit kernel: modes (int, padded), then offset, freq, maxerror, esterror, then int status.
    buffer = (ctypes.c_long * 32)()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(buffer)) < 0:
        return None
    return int(ctypes.cast(buffer, ctypes.POINTER(ctypes.c_int))[10])


def identity(
    env: Mapping[str, str] = os.environ, sso_file: str = SSO_FILE, mark: str = COMPUTE_INSTANCE_MARK
) -> list[Finding]:
    """Look for a managed identity where each kind of machine has it, without asking for a token."""
    on_instance = os.path.exists(mark) or bool(env.get("CI_NAME"))
    given = bool(env.get("MSI_ENDPOINT")), bool(env.get("MSI_SECRET"))
    from_file = _variables(sso_file)
    if given[0] != given[1] and "MSI_SECRET" not in from_file:
        missing = "MSI_SECRET" if given[0] else "MSI_ENDPOINT"
        return [Finding("identity", "warn", f"{missing} is not set, only its other half", f"see {sso_file}")]
    if all(given) or {"MSI_ENDPOINT", "MSI_SECRET"} <= from_file.keys():
        where = "the environment" if all(given) else sso_file
        return [Finding("identity", "ok", f"a compute instance's, named in {where}")]
    if on_instance:
        fix = "switch single sign-on on in the studio, or give it a managed identity, and start it again"
        return [Finding("identity", "warn", f"this is a compute instance, and there is no {sso_file}", fix)]
    if env.get("AZURE_FEDERATED_TOKEN_FILE"):
        return [Finding("identity", "ok", "a workload's (AZURE_FEDERATED_TOKEN_FILE)")]
    return [
        Finding("identity", "info", "none of a compute instance; a virtual machine's own is asked for when it is used")
    ]


def proxies(env: Mapping[str, str] = os.environ) -> list[Finding]:
    """Look whether a proxy would swallow what must go straight."""
    used = sorted({name.lower() for name in PROXIES if env.get(name)})
    if not used:
        return [Finding("proxy", "ok", "none")]
    excepted = {word.strip() for word in (env.get("no_proxy") or env.get("NO_PROXY") or "").split(",")}
    lacking = [host for host in DIRECT if host not in excepted and "*" not in excepted]
    if lacking:
        fix = f"add to NO_PROXY: {','.join(lacking)}"
        return [Finding("proxy", "warn", f"{', '.join(used)} would get what must not leave this machine", fix)]
    return [Finding("proxy", "ok", f"{', '.join(used)}, with NO_PROXY for what must go straight")]


def storage_variables(env: Mapping[str, str] = os.environ) -> list[Finding]:
    """Name variables by which blobfuse2 overrules its own configuration (we start it without them)."""
    names = sorted(name for name in env if name.startswith("AZURE_STORAGE_"))
    if not names:
        return []
    text = f"{', '.join(names)}: a blobfuse2 started by hand takes these instead of its configuration"
    return [Finding("AZURE_STORAGE_*", "info", text, f"unset {' '.join(names)}")]


def apt_sources(root: str = "/") -> list[Finding]:
    """Look at Microsoft's package source: there, of this release, and once."""
    sources = [s for s in read_sources(root) if "packages.microsoft.com" in s.host and s.uri.endswith("/prod")]
    if not sources:
        return [Finding("package source", "info", "Microsoft's is not set up", "sudo amlmount install")]
    release = dict(line.partition("=")[::2] for line in read_os_release(root).replace('"', "").splitlines())
    own = f"/{release.get('ID')}/{release.get('VERSION_ID')}/prod"
    wrong = [source for source in sources if not source.uri.endswith(own)]
    if wrong:
        text = f"{wrong[0].path} is for another release ({wrong[0].uri})"
        return [Finding("package source", "warn", text, f"sudo rm {wrong[0].path}; sudo amlmount install")]
    keys = {source.signed_by for source in sources}
    if len(keys) > 1:
        files = " and ".join(source.path for source in sources)
        text = f"{files} name the same packages with different keys: apt refuses both"
        return [Finding("package source", "warn", text, f"sudo rm {sources[-1].path}")]
    return [Finding("package source", "ok", sources[0].uri)]


def supported_release(root: str = "/") -> list[Finding]:
    """Say whether blobfuse2 is built for this system."""
    from amlmount.errors import AmlmountError

    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    try:
        release = find_release(read_os_release(root), architecture)
    except AmlmountError as error:
        return [Finding("release", "info", error.message, error.hint)]
    return [Finding("release", "ok", f"{release.title} {architecture}, blobfuse2 is built for it")]


def others_mounts(root: str = "/") -> list[Finding]:
    """Look for mounts of blobfuse2 that somebody else has set up and that do not survive: fstab, units."""
    return [*_fstab(os.path.join(root, "etc/fstab")), *_units(os.path.join(root, "etc/systemd/system"))]


def _fstab(path: str) -> list[Finding]:
    found = []
    for line in _text(path).splitlines():
        fields = line.split()
        if len(fields) < 4 or line.startswith("#") or "blobfuse2" not in line or "_netdev" in fields[3].split(","):
            continue
        fix = f"amlmount import {path}, or add _netdev to its options"
        found.append(Finding("fstab", "warn", f"{fields[1]} is mounted before there is a network (no _netdev)", fix))
    return found


def _units(folder: str) -> list[Finding]:
    found = []
    for name in _list(folder):
        text = _text(os.path.join(folder, name)) if name.endswith(".service") else ""
        if not re.search(r"^ExecStart=.*\bblobfuse2 mount", text, re.MULTILINE):
            continue
        if re.search(r"^Type=simple", text, re.MULTILINE) and "--foreground" not in text:
            said = f"{name} ends as soon as it has started: Type=simple, and blobfuse2 goes into the background"
            found.append(Finding("unit", "warn", said, f"Type=forking or --foreground in {folder}/{name}"))
        if re.search(r"^Environment=.*(KEY|SECRET|SAS)", text, re.MULTILINE):
            said = f"{name} holds a secret that everybody can read (systemctl show)"
            found.append(Finding("unit", "warn", said, "LoadCredential= or EnvironmentFile= with mode 0600; a new key"))
    return found


def old_blobfuse() -> list[Finding]:
    """Tell blobfuse from blobfuse2."""
    path = shutil.which("blobfuse")
    if path is None:
        return []
    return [Finding("blobfuse", "info", f"{path} is blobfuse 1, out of support since September 2026", "use blobfuse2")]


def _variables(path: str) -> dict[str, str]:
    pairs = (line.strip().partition("=") for line in _text(path).splitlines() if not line.startswith("#"))
    return {name.removeprefix("export ").strip(): value for name, sign, value in pairs if sign}


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _list(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
