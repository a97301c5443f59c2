"""amlmount keeps Azure blob containers mounted as folders; `with amlmount.mount(source) as m:` is its Python side."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amlmount.session import Mount, mount

__version__ = "0.1.0"
__all__ = ["Mount", "__version__", "mount"]


def __getattr__(name: str) -> Any:
    """Import the session only when it is used: `import amlmount` stays cheap."""
    if name in ("Mount", "mount"):
        from amlmount import session

        return getattr(session, name)
    raise AttributeError(f"module 'amlmount' has no attribute {name!r}")
