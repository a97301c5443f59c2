"""Where we run: containers, limits, and the neighbours that walk through every mount."""

import os
import resource

from amlmount.doctor.findings import Finding
from amlmount.mounts import has_sys_admin

MANY_OPEN_FILES = 4096
UPDATEDB_CONF = "/etc/updatedb.conf"
CONTAINER_MARKS = {"/.dockerenv": "docker", "/run/.containerenv": "podman", "/run/systemd/container": "systemd"}


def container(marks: dict[str, str] | None = None) -> list[Finding]:
    """Say whether this is a container, and whether it may mount."""
    found = [kind for path, kind in (CONTAINER_MARKS if marks is None else marks).items() if os.path.exists(path)]
    if not found:
        return [Finding("container", "ok", "none")]
    text = f"{found[0]}: mounts are seen in the container only, unless its volumes are shared"
    if os.geteuid() == 0 and not has_sys_admin():
        fix = "start it with --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor:unconfined"
        return [Finding("container", "fail", f"{found[0]}, without the right to mount (CAP_SYS_ADMIN)", fix)]
    return [Finding("container", "info", text)]


def open_files() -> list[Finding]:
    """Compare the limit of open files with what a mount under load needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MANY_OPEN_FILES:
        text = f"at most {hard}: a mount under load may run out (too many open files)"
        return [Finding("open files", "warn", text, "LimitNOFILE=65536 in the unit, or /etc/security/limits.conf")]
    return [Finding("open files", "ok", f"{soft}, can be raised to {'any' if hard < 0 else hard}")]


def updatedb(path: str = UPDATEDB_CONF) -> list[Finding]:
    """Look whether locate's indexer would walk through our mounts (and make the store bill every listing)."""
    try:
        with open(path, errors="replace") as file:
            pruned = next((line for line in file if line.replace(" ", "").startswith("PRUNEFS=")), "")
    except OSError:
        return []
    if "fuse.amlmount" in pruned:
        return [Finding("updatedb", "ok", "leaves our mounts alone")]
    fix = f"add fuse.amlmount and fuse to PRUNEFS in {path}"
    return [Finding("updatedb", "warn", "indexes our mounts every day: every listing is a request that is billed", fix)]
