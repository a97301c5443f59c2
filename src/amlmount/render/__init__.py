"""From a resolved mount to the YAML that blobfuse2 is started with, checked before anybody uses it.

What the profile means for blobfuse2 is decided in `choices`, where the data comes from in `storage`, how it is
written in `document`.
"""

import os
from collections.abc import Mapping

from amlmount.blobfuse2.problem import Problem, errors
from amlmount.blobfuse2.validate import check_config, normalized, validate_overrides
from amlmount.config.spec import MountSpec, SourceSpec
from amlmount.errors import ConfigError
from amlmount.render.choices import MIB, Limits, Sections, choose
from amlmount.render.document import MASK, write
from amlmount.render.storage import Reveal, reveal_override, storage

__all__ = ["MASK", "Limits", "Reveal", "render_blobfuse2"]

DEFAULT_CACHE_BYTES = 4096 * MIB
DEFAULT_MEMORY_BYTES = 512 * MIB


def render_blobfuse2(
    spec: MountSpec,
    *,
    secrets: Reveal | None,
    cache_dir: str,
    source: SourceSpec | None = None,
    log_path: str | None = None,
    work_dir: str | None = None,
    memory_max_bytes: int = DEFAULT_MEMORY_BYTES,
    env: Mapping[str, str] = os.environ,
) -> str:
    """Return blobfuse2's configuration for one source of `spec` (the only one unless `source` is given).

    `secrets` turns a reference into its value; None writes *** in their place. `cache_dir`, `log_path` and `work_dir`
    are absolute and this instance's alone; without `log_path` blobfuse2 logs to syslog. `env` tells the machine's
    identity. Raises ConfigError when blobfuse2 cannot do what the mount asks for, and what `secrets` raises.
    """
    source = source or _only_source(spec)
    _refuse(spec.name, errors(validate_overrides(spec.blobfuse2)))
    limits = Limits(spec.cache_max_bytes or DEFAULT_CACHE_BYTES, memory_max_bytes)
    chosen = choose(spec, limits, cache_dir=cache_dir, log_path=log_path, work_dir=work_dir)
    chosen |= storage(spec, source, secrets, env)
    return _written(spec, _overruled(chosen, spec.blobfuse2, secrets))


def _only_source(spec: MountSpec) -> SourceSpec:
    if len(spec.sources) == 1:
        return spec.sources[0]
    raise ConfigError(
        f"cannot serve {len(spec.sources)} sources of mount '{spec.name}' with one blobfuse2",
        hint="each source has a blobfuse2 of its own",
    )


def _overruled(chosen: Sections, overrides: Mapping[str, object], secrets: Reveal | None) -> Sections:
    result = dict(chosen)
    for name, value in normalized(overrides).items():
        if not isinstance(value, Mapping):
            result[name] = list(value) if isinstance(value, list | tuple) else value
            continue
        known = result.get(name)
        inside = dict(known) if isinstance(known, Mapping) else {}
        result[name] = inside | {key: reveal_override(item, secrets) for key, item in value.items()}
    return _in_use(result)


def _in_use(config: Sections) -> Sections:
    """Leave out sections of components that are not in the pipeline: they would only mislead whoever reads the file."""
    listed = config["components"]
    assert isinstance(listed, list)
    always = ("logging", "health_monitor")
    return {
        name: value for name, value in config.items() if not isinstance(value, Mapping) or name in (*always, *listed)
    }


def _written(spec: MountSpec, config: Sections) -> str:
    _refuse(spec.name, errors(check_config(config)))
    return write(spec, config)


def _refuse(name: str, problems: list[Problem]) -> None:
    if problems:
        raise ConfigError(
            f"cannot use the blobfuse2 settings of mount '{name}': {'; '.join(str(problem) for problem in problems)}",
            hint="docs/blobfuse2-keys.md lists every key",
            details={"keys": [problem.path for problem in problems]},
        )
