"""A dry run ends as the real one would: with its exit code, whatever the format."""

import pytest

from daemons import Pair, make_pair
from world import World

MOUNTS = """\
stores:
  red: {{type: local, path: {root}/red}}
mounts:
  red: {{target: {root}/mnt/red, source: red}}
  blue: {{target: {root}/mnt/blue, source: red, engine: blobfuse2}}
"""


@pytest.fixture
def pair(world: World) -> Pair:
    made = make_pair(world)
    world.write_config(MOUNTS.format(root=world.root))
    return made


@pytest.mark.parametrize(("names", "form"), [(("blue",), "table"), (("red", "blue"), "json")])
def test_what_would_fail_is_said_by_the_exit_code_too(pair: Pair, names: tuple[str, ...], form: str) -> None:
    env = {"AMLMOUNT_BLOBFUSE2": f"{pair.world.root}/not-there"}
    planned = pair.world.cli("up", *names, "--dry-run", "-o", form, env=env)
    done = pair.world.cli("up", *names, "-o", form, env=env)
    assert planned.returncode == done.returncode != 0, planned.stderr + done.stderr
    assert "cannot mount 'blue' with blobfuse2" in planned.stdout
    assert "cannot mount 'blue' with blobfuse2" in planned.stderr
    pair.world.cli("down")
