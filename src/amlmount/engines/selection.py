"""Which engine serves a mount, and why: `auto` is blobfuse2 where it is there and able, else python.

The reason is a short phrase that completes "python: ..." in `ps` and `up --dry-run`.
"""

import shutil

from amlmount.config.spec import MountSpec
from amlmount.engines.base import Engine
from amlmount.errors import ConfigError

AZURE_TYPES = ("azure_blob", "azure_data_lake_gen2")


def select_engine(spec: MountSpec, *, log_dir: str | None = None) -> tuple[Engine, str]:
    """Return a new engine for `spec` and why it is this one; `log_dir` is where its processes log.

    Raises ConfigError if no engine can do what the mount asks for.
    """
    from amlmount.engines.python import PythonEngine

    why = _why_python(spec)
    if not spec.read_only:
        raise ConfigError(
            f"cannot mount '{spec.name}' for writing: the python engine only reads so far",
            hint="leave out 'read_only: false'",
        )
    return PythonEngine(log_dir=log_dir), why


def _why_python(spec: MountSpec) -> str:
    if spec.engine == "blobfuse2":
        raise ConfigError(
            f"cannot mount '{spec.name}' with blobfuse2: this version of amlmount does not run it yet",
            hint="write 'engine: auto' or 'engine: python'",
        )
    if spec.engine == "python":
        return "asked for by name"
    if any(source.store.get("type") not in AZURE_TYPES for source in spec.sources):
        return "blobfuse2 mounts Azure storage only"
    if shutil.which("blobfuse2") is None:
        return "blobfuse2 is not installed"
    return "blobfuse2 is installed, but not run by this version yet"
