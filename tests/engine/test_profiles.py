"""Profiles from the command line and from recorded requests."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.core.errors import EngineError
from aula.engine import profiles as module
from aula.engine.histogram import Recorded, read_histogram
from aula.engine.profiles import profiles_from_histogram, read_profile, read_profiles
from aula.engine.recipe import Profile, Size

DIMENSIONS = ("batch", "sequence")


def test_one_number_is_fixed_two_are_least_and_greatest_three_name_the_usual() -> None:
    sizes = read_profile("question:batch=1,sequence=3-16-64", DIMENSIONS)
    assert sizes == Profile("question", {"batch": Size(1, 1, 1), "sequence": Size(3, 16, 64)})
    assert read_profile("q:sequence=3-64", ["sequence"]).sizes["sequence"] == Size(3, 64, 64)


def test_dimensions_stand_in_the_graphs_order_and_spaces_do_not_matter() -> None:
    profile = read_profile(" long : sequence = 64-128 , batch = 1-8 ".replace(" :", ":"), DIMENSIONS)
    assert profile.name == "long"
    assert list(profile.sizes) == list(DIMENSIONS)


def test_without_a_name_a_profile_is_named_after_its_greatest_sizes() -> None:
    assert read_profile("batch=1,sequence=3-64", DIMENSIONS).name == "batch1-sequence64"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not dimension=sizes"),
        ("question", "is not dimension=sizes"),
        ("question:", "is not dimension=sizes"),
        ("question:batch", "'batch' is not dimension=sizes"),
        ("question:batch=1", "does not say sequence"),
        ("question:batch=1,sequence=3,frames=4", "no free dimension 'frames'"),
        ("question:batch=1,batch=2,sequence=3", "batch is given twice"),
        ("question:batch=0,sequence=3", "do not rise from 1"),
        ("question:batch=1,sequence=64-3", "do not rise from 1"),
        ("question:batch=1,sequence=3-99-64", "do not rise from 1"),
        ("question:batch=1,sequence=3-4-5-6", "not one to three numbers"),
        ("question:batch=1,sequence=", "not one to three numbers"),
        ("question:batch=1,sequence=-3", "not one to three numbers"),
        ("question:batch=1,sequence=1e3", "not one to three numbers"),
        ("question:batch=1,sequence=" + "9" * 99, "not one to three numbers"),
        ("question:batch=1,sequence=٣", "not one to three numbers"),
        ("../q:batch=1,sequence=3", "is no name"),
        (":batch=1,sequence=3", "is no name"),
    ],
)
def test_a_wrong_specification_is_shown_beside_a_right_one(text: str, why: str) -> None:
    with pytest.raises(EngineError) as caught:
        read_profile(text, DIMENSIONS)
    assert why in caught.value.what
    assert repr(text)[:100] in caught.value.what
    assert "--profile question:batch=1,sequence=3-16-64" in caught.value.next_step


@given(st.text(max_size=40))
def test_whatever_is_typed_is_a_profile_or_a_typed_error(text: str) -> None:
    try:
        profile = read_profile(text, ["n"])
    except EngineError:
        return
    assert set(profile.sizes) == {"n"}


def test_options_are_specifications_and_files_of_recorded_requests(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"batch": 1, "sequence": 17}\n{"batch": 1, "sequence": 90}\n')
    found = read_profiles(["question:batch=1,sequence=3-16-64", f"@{path}"], DIMENSIONS)
    assert [profile.name for profile in found] == ["question", "batch1-sequence17", "batch1-sequence90"]
    assert read_profiles([], DIMENSIONS) == ()


def test_two_profiles_of_one_name_are_refused() -> None:
    with pytest.raises(EngineError, match="2 profiles have the name 'a'"):
        read_profiles(["a:n=1", "a:n=2"], ["n"])


CSV = "batch,sequence,count\n1,17,2\n\n1,9,1\n1,17,3\n"
LINES = '\ufeff{"sequence": 17, "batch": 1, "count": 5}\n\n{"batch": 1, "sequence": 9}\n'


@pytest.mark.parametrize("content", [CSV, LINES, CSV.replace("\n", "\r\n")])
def test_a_histogram_is_json_lines_or_a_table(tmp_path: Path, content: str) -> None:
    path = tmp_path / "requests"
    path.write_bytes(content.encode())
    assert read_histogram(path, DIMENSIONS) == (
        Recorded({"batch": 1, "sequence": 9}, 1),
        Recorded({"batch": 1, "sequence": 17}, 5),
    )
    assert set(read_histogram(path)[0].sizes) == set(DIMENSIONS)


GOOD = b'{"batch": 1, "sequence": 17}\n'


@pytest.mark.parametrize(
    ("content", "line", "why"),
    [
        (GOOD + b'{"batch": 1, "sequence": 17', 2, "not JSON"),
        (GOOD + b"[1, 17]", 2, "not a JSON object"),
        (GOOD + b"1,17", 2, "not JSON"),
        (GOOD + b"\n" + b'{"batch": 1}', 3, "it gives batch"),
        (GOOD + b'{"batch": 1, "sequence": 0}', 2, "sequence is 0"),
        (GOOD + b'{"batch": 1, "sequence": true}', 2, "sequence is True"),
        (GOOD + b'{"batch": 1, "sequence": 1.5}', 2, "sequence is 1.5"),
        (GOOD + b'{"batch": 1, "sequence": 9, "count": 0}', 2, "count is 0"),
        (GOOD + b'{"batch": 1, "sequence": 1e400}', 2, "sequence is inf"),
        (GOOD + b'{"batch": 1, "sequence": ' + b"9" * 5000 + b"}", 2, "not JSON"),
        (GOOD + b'{"batch": 1, "sequence": [[', 2, "not JSON"),
        (b'{"frames": 1}', 1, "it gives frames"),
        (b'{"count": 1}', 1, "it gives no size"),
        (b'{"a":' + b"[" * 60_000, 1, "not JSON"),
        (b"x" * 70_000, 1, "longer than"),
        (b"\xff\xfe\x00", 1, "not UTF-8"),
        (b"17\n18\n", 1, "neither a JSON object nor a table's header"),
        (b"batch,batch\n1,2\n", 1, "neither a JSON object nor a table's header"),
        (b'{"' + b"x" * 9000 + b'": 1}', 1, "it gives xxx"),
        (b"batch,sequence\n1\n", 2, "1 cells where the header has 2"),
        (b"batch,sequence\n1,two\n", 2, "sequence is 'two'"),
        (b'batch,sequence\n1,"2\n', 2, "no line of a table"),
        (b"\x00\x01", 1, ""),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, content: bytes, line: int, why: str) -> None:
    path = tmp_path / "requests"
    path.write_bytes(content)
    with pytest.raises(EngineError) as caught:
        read_histogram(path, DIMENSIONS)
    assert f"line {line} of {path}" in caught.value.what
    assert why in caught.value.what
    assert len(str(caught.value)) < 600


def test_lines_of_different_dimensions_are_refused_where_the_graph_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    path.write_text('{"a": 1}\n{"b": 1}\n')
    with pytest.raises(EngineError, match="line 2"):
        read_histogram(path)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"batch,sequence\n"])
def test_a_histogram_that_is_absent_or_empty_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "requests"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError):
        read_histogram(path, DIMENSIONS)
    with pytest.raises(EngineError):
        read_profiles(["@"], DIMENSIONS)


@given(st.binary(max_size=60))
def test_whatever_a_file_holds_is_a_histogram_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(content)
    try:
        rows = read_histogram(path)
    except EngineError:
        return
    assert all(size >= 1 for row in rows for size in row.sizes.values())


def _rows(*lists: Sequence[tuple[int, ...]]) -> list[Recorded]:
    """(sizes…, count) as records of the dimensions a, b, …"""
    return [Recorded(dict(zip("abc", row[:-1], strict=False)), row[-1]) for row in itertools.chain(*lists)]


def _fits(row: Recorded, profile: Profile) -> bool:
    return all(size.least <= row.sizes[name] <= size.greatest for name, size in profile.sizes.items())


def _volume(profile: Profile) -> int:
    volume = 1
    for size in profile.sizes.values():
        volume *= size.greatest
    return volume


def _cost(rows: Sequence[Recorded], profiles: Sequence[Profile]) -> int:
    return sum(row.count * min(_volume(profile) for profile in profiles if _fits(row, profile)) for row in rows)


def _partitions(items: Sequence[int], most: int) -> Iterator[list[list[int]]]:
    """Every way to put `items` into at most `most` groups."""
    if not items:
        yield []
        return
    for rest in _partitions(items[1:], most):
        if len(rest) < most:
            yield [[items[0]], *rest]
        for place in range(len(rest)):
            yield [*rest[:place], [items[0], *rest[place]], *rest[place + 1 :]]


lines = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=6)
planes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=12)


@given(lines, st.integers(1, 4))
def test_with_one_dimension_no_split_at_all_is_cheaper(line: list[tuple[int, int]], most: int) -> None:
    rows = _rows(line)
    brute = min(
        sum(rows[place].count * max(line[other][0] for other in group) for group in groups for place in group)
        for groups in _partitions(range(len(rows)), most)
    )
    assert _cost(rows, profiles_from_histogram(rows, most)) == brute


@given(planes, st.integers(1, 4))
def test_every_request_fits_names_are_unique_and_more_profiles_never_cost_more(
    plane: list[tuple[int, int, int]], most: int
) -> None:
    rows = _rows(plane)
    fewer, more = profiles_from_histogram(rows, most), profiles_from_histogram(rows, most + 1)
    assert len(fewer) <= most
    assert all(any(_fits(row, profile) for profile in fewer) for row in rows)
    assert len({profile.name for profile in fewer}) == len(fewer)
    assert [_volume(profile) for profile in fewer] == sorted(_volume(profile) for profile in fewer)
    assert _cost(rows, more) <= _cost(rows, fewer)


@given(planes, st.randoms())
def test_the_order_in_which_requests_came_does_not_matter(plane: list[tuple[int, int, int]], random: object) -> None:
    shuffled = list(plane)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert profiles_from_histogram(_rows(plane)) == profiles_from_histogram(_rows(shuffled))


def test_the_usual_size_is_the_most_frequent_and_names_can_be_read() -> None:
    rows = _rows([(1, 8, 5), (1, 16, 90), (1, 17, 5), (1, 120, 30), (1, 128, 2)])
    short, long = profiles_from_histogram(rows, 2)
    assert (short.name, short.sizes["b"]) == ("a1-b17", Size(8, 16, 17))
    assert (long.name, long.sizes["b"]) == ("a1-b128", Size(120, 120, 128))
    assert long.sizes["a"] == Size(1, 1, 1)


def test_no_profile_is_made_that_saves_nothing() -> None:
    assert len(profiles_from_histogram(_rows([(1, 16, 3)]), 3)) == 1


def test_two_free_dimensions_are_split_by_the_better_of_them() -> None:
    """By volume alone the two middle ones would lie side by side and share the greatest of both."""
    rows = _rows([(1, 128, 10), (8, 16, 10)])
    assert _cost(rows, profiles_from_histogram(rows, 2)) == 10 * 128 + 10 * 128
    wide = _rows([(1, 100, 1), (2, 100, 1), (1, 400, 1), (2, 400, 1)])
    assert _cost(wide, profiles_from_histogram(wide, 2)) == 2 * 200 + 2 * 800


def test_more_sizes_than_can_be_compared_are_kept_with_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_UNITS", 8)
    rows = _rows([(1, size, 1) for size in range(1, 41)])
    found = profiles_from_histogram(rows, 3)
    assert len(found) == 3
    assert all(any(_fits(row, profile) for profile in found) for row in rows)
    assert found[-1].sizes["b"].greatest == 40


def test_nothing_to_split_is_an_error() -> None:
    for rows, most in [([], 3), (_rows([(1, 1, 1)]), 0), ([Recorded({"a": 1}), Recorded({"b": 1})], 1)]:
        with pytest.raises(EngineError):
            profiles_from_histogram(rows, most)


def test_the_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(json.dumps({"batch": 1, "sequence": size}) for size in (5, 6, 60)))
    assert len(read_profiles([f"@{path}"], DIMENSIONS)) == 3
