import json
import os
from pathlib import Path

import pytest

from stma.errors import InputError
from stma.runtime.resume import (
    EVALUATION,
    RECORD,
    TRAINING,
    DamagedRecord,
    Record,
    begin,
    differences,
    earlier_run,
    files_state,
    read_record,
)

OURS = ("masks", "scores.json")
RUN = Record(EVALUATION, {"method": "copy", "segmenter": {"top_k": None}})


def begun(folder: Path, record: Record = RUN, *, overwrite: bool = False) -> Record | None:
    return begin(folder, record, OURS, overwrite=overwrite, over="--again")


def with_result(folder: Path, record: Record = RUN) -> Path:
    """A run that has left masks."""
    (folder / "masks").mkdir(parents=True)
    (folder / "masks" / "0.png").touch()
    record.write(folder / RECORD)
    return folder


def test_a_record_is_read_as_it_was_written(tmp_path) -> None:
    """Also what JSON changes: tuples and the keys' types."""
    record = Record(TRAINING, {"sizes": (1, 2), "masks": {3: "a"}}, details={"torch": "2.6"})
    record.write(tmp_path / RECORD)
    assert read_record(tmp_path / RECORD) == record
    assert record.identity == {"sizes": [1, 2], "masks": {"3": "a"}}
    assert read_record(tmp_path / "none.json") is None
    assert read_record(tmp_path / RECORD / "below.json") is None


def test_the_digest_is_of_what_the_result_depends_on_alone() -> None:
    assert RUN.digest == Record(EVALUATION, dict(reversed(RUN.identity.items())), done=True).digest
    assert RUN.digest != Record(TRAINING, RUN.identity).digest
    assert RUN.digest != Record(EVALUATION, {}).digest


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"torch": "2.6"}',
        b'{"kind": 1, "identity": {}}',
        b'{"kind": "a", "identity": null}',
        b'{"kind": "a", "identity": {}, "done": 1}',
        b'{"kind": "a", "identity": {}, "details": []}',
        b'{"kind": "a", "identity": {}, "more": {}}',
    ],
)
def test_a_damaged_record_is_named_and_can_be_started_over(tmp_path, content: bytes) -> None:
    with_result(tmp_path)
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(DamagedRecord, match=r"run\.json: damaged.*--again"):
        begun(tmp_path)
    assert (tmp_path / "masks" / "0.png").exists()
    begun(tmp_path, overwrite=True)
    assert not (tmp_path / "masks").exists()
    assert read_record(tmp_path / RECORD) == RUN


def test_a_record_that_is_a_loop_of_links_is_damaged(tmp_path) -> None:
    (tmp_path / RECORD).symlink_to(tmp_path / RECORD)
    with pytest.raises(DamagedRecord, match=r"run\.json: damaged"):
        begun(tmp_path)


def test_differences_are_named_by_their_full_keys() -> None:
    before = {"a": 1, "b": {"c": 2, "root": "x", "d": 0}, "e": {"d": 1}, "gone": 5}
    now = {"a": 1, "b": {"c": 3, "root": "y", "d": 1}, "e": {"d": 2}, "new": {"f": 6}}
    assert differences(before, now, ignored=("root", "b.d")) == [
        "b.c: 2 there, 3 here",
        "e.d: 1 there, 2 here",
        "gone: 5 there, None here",
        "new: None there, {'f': 6} here",
    ]
    assert differences(before, before) == []


def test_the_same_run_goes_on_with_what_it_has_left(tmp_path) -> None:
    assert begun(tmp_path) is None
    with_result(tmp_path, Record(RUN.kind, RUN.identity, done=True, details={"n": 1}))
    earlier = begun(tmp_path)
    assert earlier is not None
    assert (earlier.done, earlier.details) == (True, {"n": 1})
    assert (tmp_path / "masks" / "0.png").exists()


def test_started_over_only_its_own_files_go(tmp_path) -> None:
    with_result(tmp_path)
    (tmp_path / "holiday.mp4").touch()
    assert begun(tmp_path, overwrite=True) is None
    assert sorted(os.listdir(tmp_path)) == ["holiday.mp4", RECORD]


def test_another_run_is_refused_unless_there_is_nothing_to_lose(tmp_path) -> None:
    other = Record(EVALUATION, RUN.identity | {"method": "flow"})
    with_result(tmp_path)
    with pytest.raises(InputError, match=r"output: .*\(method: copy there, flow here\).*--again"):
        begun(tmp_path, other)
    assert read_record(tmp_path / RECORD) == RUN
    (tmp_path / "masks" / "0.png").unlink()
    assert begun(tmp_path, other) is None
    assert read_record(tmp_path / RECORD) == other


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_never_taken(tmp_path, overwrite: bool) -> None:
    training = with_result(tmp_path / "a", Record(TRAINING, {}))
    unknown = with_result(tmp_path / "b")
    (unknown / RECORD).unlink()
    for folder, message in ((training, "holds a training"), (unknown, "masks, but no run.json")):
        before = sorted(folder.rglob("*"))
        with pytest.raises(InputError, match=message):
            begun(folder, overwrite=overwrite)
        with pytest.raises(InputError, match=message):
            earlier_run(folder, RUN, OURS, overwrite=overwrite, over="")
        assert sorted(folder.rglob("*")) == before


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch) -> None:
    def full(self: Path, text: str, **more: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=f"output: {tmp_path} cannot be written to .*No space"):
        begun(tmp_path)


def test_the_state_of_files(tmp_path) -> None:
    """Times, or what the files end with; a name need not be UTF-8."""
    paths = [tmp_path / "a", tmp_path / os.fsdecode(b"b\xff")]
    for path in paths:
        path.write_bytes(bytes(1 << 17))
    times, ends = (files_state(paths, times=each) for each in (True, False))
    os.utime(paths[1], (1, 1))
    assert files_state(paths, times=True) != times
    assert files_state(paths, times=False) == ends
    paths[1].write_bytes(bytes(100_000) + b"1" + bytes((1 << 17) - 100_001))
    assert files_state(paths, times=False) != ends
    assert files_state(paths[:1], times=False) != files_state([], times=False)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError):
        files_state(paths, times=True)


def test_a_record_is_readable_json(tmp_path) -> None:
    RUN.write(tmp_path / RECORD)
    content = json.loads((tmp_path / RECORD).read_text())
    assert content == {"kind": EVALUATION, "identity": RUN.identity, "done": False, "details": {}}
