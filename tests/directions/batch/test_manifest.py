"""Manifests: what is written down, what the next run knows, and files that are none."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from directions.apply.wanted import EditedFace, Outcome, Wanted
from directions.batch.manifest import Manifest, options_of, to_record
from directions.photo.sources import Source
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.ode import Control, Grid


def outcome(i: int, error: str | None = None) -> Outcome:
    photo = Source(Path(f"photo-{i}.png"))
    if error:
        return Outcome(photo, error=FlowgradError(error))
    return Outcome(photo, Path(f"out-{i}.png"), sha256=f"{i:064x}", edited=(EditedFace(0.5, 0.25, None),))


def written(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def run(path: Path, outcomes: list[Outcome], options: str = "a", retry: bool = False) -> dict:
    with Manifest(path, "old:1", options, retry) as manifest:
        assert list(manifest.record(outcomes)) == outcomes
        return manifest.known


def test_the_next_run_knows_what_was_done_with_the_same_options(tmp_path: Path) -> None:
    path = tmp_path / "new" / "manifest.jsonl"
    assert run(path, [outcome(0), outcome(1, "damaged"), replace(outcome(2), skipped=True)]) == {}
    known = run(path, [])
    assert {name: (k.output, k.error) for name, k in known.items()} == {
        "photo-0.png": ("out-0.png", ""),
        "photo-1.png": ("", "damaged"),
    }
    assert known["photo-0.png"].sha256 == f"{0:064x}"
    assert run(path, [outcome(0)], options="b") == {} and set(run(path, [], options="b")) == {"photo-0.png"}
    assert set(run(path, [], retry=True)) == {"photo-0.png"}
    assert [record["error"] for record in written(path)] == [None, None]


def test_each_line_is_on_disk_before_the_next_photo(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    with Manifest(path, "old:1", "a") as manifest:
        for i, _ in enumerate(manifest.record(map(outcome, range(3)))):
            assert len(written(path)) == i + 1


def test_a_later_line_counts_and_the_earlier_one_goes(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    run(path, [outcome(0), outcome(1), replace(outcome(0), sha256="new")])
    assert run(path, [])["photo-0.png"].sha256 == "new"
    assert [record["input"] for record in written(path)] == ["photo-1.png", "photo-0.png"]


@pytest.mark.parametrize("left", [1, 5, 20, 150])
def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path, left: int) -> None:
    path = tmp_path / "manifest.jsonl"
    run(path, [outcome(0), outcome(1)])
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:left])
    assert set(run(path, [outcome(2)])) == {"photo-0.png"}
    assert [record["input"] for record in written(path)] == ["photo-0.png", "photo-2.png"]


def changed(key: str, value: object) -> bytes:
    """A manifest of one record, in which a key holds something else."""
    return json.dumps({**to_record(outcome(0), "old:1", "a"), key: value}).encode() + b"\n"


HOSTILE = [
    b"[" * 200_000 + b"\n",
    changed("input", []),
    changed("sha256", {}),
    changed("output", 3),
    changed("error", []),
]


@pytest.mark.parametrize(
    "content",
    [b"a letter", b"a letter\n", b'{"other": 1}\n', b"[]\n", b"\x89PNG\r\n\x1a\n\0", b"[" * 200_000 + b"\n", *HOSTILE],
    ids=lambda content: content[:12],
)
def test_what_is_no_manifest_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / "letter.txt").write_bytes(content)
    with pytest.raises(FlowgradError, match=r"letter\.txt is no manifest: line 1"):
        run(path, [])
    assert path.read_bytes() == content
    with pytest.raises(UsageError, match="is a folder"):
        run(tmp_path, [])
    with pytest.raises(UsageError, match=r"letter\.txt is a file"):
        run(path / "manifest.jsonl", [])


def test_a_pipe_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "manifest.jsonl")
    with pytest.raises(UsageError, match=r"manifest\.jsonl is a pipe"):
        run(path, [])


def test_two_runs_never_add_to_one_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    with Manifest(path, "old:1", "a"), pytest.raises(FlowgradError, match=r"another run adds to .*manifest\.jsonl"):
        run(path, [])
    assert run(path, []) == {}


def test_a_record_says_what_became_of_each_face() -> None:
    faces = (EditedFace(1.0, 0.5, None), EditedFace(0.25, None, "it looks dark"))
    record = to_record(replace(outcome(0), edited=faces), "old:1", "a")
    assert record["strength"] == [1.0, 0.25] and record["distance"] == [0.5, None]
    assert record["verdict"] == [None, "it looks dark"] and json.loads(json.dumps(record)) == record


def test_options_differ_where_results_do() -> None:
    control = Control(torch.ones(2, 1, 3, 4, 4), Grid((0, 3), 6))
    plain = options_of(control, Wanted(), "weights", "fp32", False)
    alike = [
        options_of(control, Wanted(overwrite=True, recorded=True, title="other"), "weights", "fp32", False),
        options_of(Control(control.values.double(), control.grid), Wanted(), "weights", "fp32", False),
    ]
    others = [
        options_of(control * 0.5, Wanted(), "weights", "fp32", False),
        options_of(Control(control.values, Grid((0, 2), 6)), Wanted(), "weights", "fp32", False),
        options_of(control, Wanted(), "other weights", "fp32", False),
        options_of(control, Wanted(), "weights", "bf16", False),
        options_of(control, Wanted(), "weights", "fp32", True),
        *(
            options_of(control, wanted, "weights", "fp32", False)
            for wanted in (Wanted(crop=True), Wanted(face=1), Wanted(budget=0.5), Wanted(strengths=(1.0, 2.0)))
        ),
    ]
    assert set(alike) == {plain} and len({plain, *others}) == 1 + len(others)
