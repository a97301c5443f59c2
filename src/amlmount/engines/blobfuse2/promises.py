"""What a mount of blobfuse2 does not get when its process dies, as `ps` says it: by cache, kernel and rights."""

from amlmount.config.spec import MountSpec
from amlmount.engines.attaching import why_not_beneath
from amlmount.engines.blobfuse2.succession import kernel_resends
from amlmount.mounts import has_sys_admin
from amlmount.render.choices import choose_cache


def limits(spec: MountSpec) -> list[str]:
    """Return a phrase for each; none where a crash costs nobody an error."""
    if not has_sys_admin():
        return ["at a crash it is mounted anew and open files get errors (an ordinary user)"]
    found = []
    if choose_cache(spec) == "block_cache" and not spec.read_only:
        found.append("at a crash open writers get an error (block_cache)")
    if why_not_beneath() is not None:
        found.append("at a crash open files may get errors (before Linux 6.5)")
    elif not kernel_resends():
        found.append("at a crash what is under way may get an error, open files with it (before Linux 6.9)")
    return found
