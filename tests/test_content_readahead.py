"""Read-ahead as a pure function of what was read: who gets it, how much, and who does not."""

import itertools
import random

from amlmount.vfs.content.grid import MAX_BLOCKS, MIN_BLOCK_BYTES, Grid
from amlmount.vfs.content.readahead import FIRST_WINDOW_BYTES, START_BYTES, Streams

MIB = 1 << 20
SIZE = 1 << 30


def read_through(streams: Streams, start: int, stop: int, step: int = 128 << 10) -> list[tuple[int, int]]:
    wanted = [streams.note(offset, step) for offset in range(start, stop, step)]
    return [one for one in wanted if one is not None]


def test_a_reader_from_the_start_is_fetched_ahead_of_at_once_and_twice_as_far_as_he_came() -> None:
    streams = Streams(SIZE, 64 * MIB)
    assert streams.note(0, 128 << 10) == (128 << 10, (128 << 10) + FIRST_WINDOW_BYTES)
    wanted = read_through(streams, 128 << 10, 100 * MIB)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(wanted)), "a gap, or twice"
    ahead = [end - start for start, end in wanted]
    assert max(ahead) <= 64 * MIB and wanted[-1][1] >= 150 * MIB
    for start, end in wanted:
        assert end <= 3 * start + 2 * FIRST_WINDOW_BYTES


def test_read_ahead_ends_with_the_blob() -> None:
    streams = Streams(10 * MIB, 64 * MIB)
    wanted = [streams.note(0, MIB), *read_through(streams, MIB, 10 * MIB)]
    assert [one for one in wanted if one][-1][1] == 10 * MIB


def test_noting_a_read_twice_changes_nothing() -> None:
    once, twice = Streams(SIZE, 64 * MIB), Streams(SIZE, 64 * MIB)
    for offset in range(0, 32 * MIB, 128 << 10):
        wanted = once.note(offset, 128 << 10)
        assert twice.note(offset, 128 << 10) == wanted
        assert twice.note(offset, 128 << 10) is None


def test_a_random_reader_is_left_alone() -> None:
    streams, rng = Streams(SIZE, 64 * MIB), random.Random(1)
    wanted = 0
    for _ in range(1000):
        offset = rng.randrange(1, SIZE - MIB)
        for part in range(0, 256 << 10, 128 << 10):  # as the kernel splits it where its own window is 128 KiB
            found = streams.note(offset + part, 128 << 10)
            wanted += found[1] - found[0] if found else 0
    assert wanted < 1000 * (256 << 10) // 4


def test_a_reader_that_begins_in_the_middle_must_have_read_for_a_while() -> None:
    streams = Streams(SIZE, 64 * MIB)
    assert read_through(streams, 500 * MIB, 500 * MIB + START_BYTES - (128 << 10)) == []
    assert read_through(streams, 500 * MIB + START_BYTES - (128 << 10), 502 * MIB) != []


def test_four_readers_of_one_blob_are_four_streams() -> None:
    streams = Streams(SIZE, 16 * MIB)
    reached = dict.fromkeys(range(0, SIZE, SIZE // 4), 0)
    for step in range(0, 8 * MIB, 128 << 10):
        for start in reached:
            found = streams.note(start + step, 128 << 10)
            reached[start] = max(reached[start], found[1] - start if found else 0)
    assert min(reached.values()) >= 16 * MIB


def test_without_a_window_nothing_is_fetched_ahead() -> None:
    assert read_through(Streams(SIZE, 0), 0, 64 * MIB) == []


def test_a_grid_has_few_blocks_whatever_the_size() -> None:
    assert Grid.of(1).count == 1
    assert Grid.of(SIZE).block_bytes == MIN_BLOCK_BYTES
    huge = Grid.of(5 << 40)
    assert huge.count <= MAX_BLOCKS and huge.count * huge.block_bytes >= 5 << 40
    grid = Grid(1000, 64)
    assert grid.span(60, 10) == (0, 2) and grid.span(990, 100) == (15, 16) and grid.length(15, 16) == 40
