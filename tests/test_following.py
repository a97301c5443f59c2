"""The configuration's files are followed: what editors, scripts and tools do to them is seen once, and never half."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from amlmount.config.load import config_files, config_folders
from amlmount.daemon import following
from amlmount.daemon.following import ConfigWatch, look_at

QUIET_S = 0.04
Act = Callable[[Path], object]


def replace(path: Path) -> None:
    draft = path.with_name(".#draft")
    draft.write_text("new")
    os.replace(draft, path)


def as_vim(path: Path) -> None:
    (path.parent / "4913").touch()
    (path.parent / "4913").unlink()
    os.rename(path, f"{path}~")
    path.write_text("new")
    os.unlink(f"{path}~")


def in_parts(path: Path) -> None:
    with open(path, "w") as file:
        for _ in range(3):
            file.write("part\n")
            file.flush()
            time.sleep(2 * QUIET_S)


def another_part(path: Path) -> None:
    (path.parent / "conf.d").mkdir()
    time.sleep(2 * QUIET_S)
    (path.parent / "conf.d" / "a.yaml").write_text("new")


def switch_link(path: Path) -> None:
    """As Kubernetes does: `amlmount.yaml -> ..data/amlmount.yaml`, and `..data` is another directory at once."""
    for name in ("one", "two"):
        (path.parent / name).mkdir()
        (path.parent / name / path.name).write_text(name)
    os.symlink("one", path.parent / "..data")
    os.unlink(path)
    os.symlink(f"..data/{path.name}", path)
    os.symlink("two", path.parent / "..new")
    os.replace(path.parent / "..new", path.parent / "..data")


def write_to_where_the_link_leads(path: Path) -> None:
    Path(os.path.realpath(path)).write_text("changed")


def follow(main: Path, act: Act, *, rest_s: float = 0.3) -> list[str]:
    """Return what the files held at each time they were said to have changed, while and after `act` was done."""
    folder = main.parent
    seen: list[str] = []

    def files() -> list[Path]:
        return config_files(folder)

    def note() -> None:
        seen.append("|".join(path.read_text() for path in files()))

    async def story() -> None:
        watch = ConfigWatch(files, config_folders(folder), look_at(files), note, quiet_s=QUIET_S)
        acting = threading.Thread(target=act, args=(main,))
        acting.start()
        await asyncio.to_thread(acting.join)
        deadline = time.monotonic() + 5
        while not seen and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.sleep(rest_s)  # nothing more may come
        watch.close()

    asyncio.run(story())
    return seen


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "amlmount.yaml"
    path.write_text("old")
    return path


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (lambda path: path.write_text("new"), "new"),
        (replace, "new"),
        (as_vim, "new"),
        (in_parts, "part\n" * 3),
        (another_part, "old|new"),
        (switch_link, "two"),
    ],
    ids=["written", "replaced", "vim", "in parts", "another part", "switched link"],
)
def test_a_change_is_seen_once_and_whole(main: Path, act: Act, found: str) -> None:
    assert follow(main, act) == [found]


def test_a_file_behind_a_link_is_followed_too(main: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.rename(main, tmp_path / "elsewhere" / "real.yaml")
    os.symlink("elsewhere/real.yaml", main)
    assert follow(main, write_to_where_the_link_leads) == ["changed"]


def test_a_folder_that_comes_later(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True)
        time.sleep(4 * QUIET_S)
        path.write_text("new")

    main = tmp_path / "etc" / "amlmount" / "amlmount.yaml"
    seen: list[str] = []

    async def story() -> None:
        def files() -> list[Path]:
            return [main] if main.exists() else []

        watch = ConfigWatch(files, [main.parent], (), lambda: seen.append(main.read_text()), quiet_s=QUIET_S)
        await asyncio.to_thread(make, main)
        deadline = time.monotonic() + 5
        while not seen and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        watch.close()

    asyncio.run(story())
    assert seen == ["new"]


def test_what_is_beside_it_is_no_change(main: Path) -> None:
    def act(path: Path) -> None:
        (path.parent / "notes.txt").write_text("x")
        (path.parent / ".amlmount.yaml.swp").write_text("x")
        os.utime(path.parent)
        path.read_text()
        time.sleep(6 * QUIET_S)
        path.write_text("new")

    assert follow(main, act) == ["new"]


def test_without_inotify_it_looks_by_the_clock(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOOK_AGAIN_S", 0.1)
    monkeypatch.setattr(following, "_LIBC", type("Out", (), {"inotify_init1": staticmethod(lambda flags: -1)}))
    assert follow(main, replace) == ["new"]
