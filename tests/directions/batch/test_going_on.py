"""`apply-direction` with a manifest: what is done again, what is not, and that results do not depend on it."""

import errno
import json
import os
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import Result

from directions.apply import files as editing
from flowgrad.addresses import files_in, read_bytes, write_bytes
from tests.helpers.command_line import failed

MANIFEST = ("--manifest", "done.jsonl")


def edited(folder: str = "edited") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def records() -> list[dict]:
    return [json.loads(line) for line in Path("done.jsonl").read_text().splitlines()]


def said(result: Result, *words: str) -> None:
    """Some photos must have failed, and the errors hold these words."""
    assert result.exit_code == 1 and all(word in result.stderr for word in words), result.output


def cut_off(after: int) -> None:
    """As if the run had been killed when so many photos were recorded, and the next one written."""
    lines = Path("done.jsonl").read_bytes().splitlines(keepends=True)
    Path("done.jsonl").write_bytes(b"".join(lines[:after]) + lines[after][:30])
    for line in lines[after + 1 :]:
        Path(json.loads(line)["output"]).unlink()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many faces went through the network together, each time; their number moves every result by a little."""
    seen, invert = [], editing.invert_for

    def moved(model, images, control, inversion):
        seen.append(len(images))
        return invert(model, (images + 0.002 * len(images)).clamp(-1, 1), control, inversion)

    monkeypatch.setattr(editing, "invert_for", moved)
    return seen


def test_a_run_goes_on_with_the_same_bits_even_if_they_depend_on_the_batch(applied, watched: list[int]) -> None:
    assert applied("photos", *MANIFEST, "--output", "whole").exit_code == 0
    batches = watched.copy()
    Path("done.jsonl").unlink()
    for after in (0, 3, 17, 22):
        assert applied("photos", *MANIFEST).exit_code == 0
        assert edited() == edited("whole")
        cut_off(after)
        watched.clear()
        result = applied("photos", *MANIFEST)
        assert result.exit_code == 0 and edited() == edited("whole")
        assert watched and set(watched) <= set(batches), "a group of neighbours is edited as a whole or not at all"
        assert Counter(record["input"] for record in records()) == Counter(f"photos/photo-{i}.png" for i in range(24))
        assert f"{24 - after} of 24 photos written to edited" in result.output


def test_what_is_done_is_read_and_not_decoded(applied, monkeypatch: pytest.MonkeyPatch) -> None:
    assert applied("photos", *MANIFEST).exit_code == 0
    before = Path("done.jsonl").read_bytes()
    monkeypatch.setattr("directions.photo.faces.read_photo", lambda *_, **__: pytest.fail("a photo is decoded"))
    assert "24 skipped" in applied("photos", *MANIFEST).output
    assert Path("done.jsonl").read_bytes() == before


def test_a_photo_that_was_changed_is_done_again(applied) -> None:
    assert applied("photos", *MANIFEST).exit_code == 0
    before = edited()
    Path("photos/photo-3.png").write_bytes(Path("photos/photo-4.png").read_bytes())
    said(applied("photos", *MANIFEST), "edited/photo-3-old.png exists already", "--overwrite")
    assert edited() == before
    result = applied("photos", *MANIFEST, "--overwrite", "--retry")
    assert result.exit_code == 0 and "1 of 24 photos written to edited, 23 skipped" in result.output
    changed = [name for name in before if edited()[name] != before[name]]
    assert changed == ["photo-3-old.png"]
    assert len({record["sha256"] for record in records()[-1:]} & {record["sha256"] for record in records()[:-1]}) == 1


def test_a_result_that_is_gone_is_made_again(applied) -> None:
    assert applied("photos", *MANIFEST).exit_code == 0
    before = edited()
    Path("edited/photo-7-old.png").unlink()
    assert "1 of 24 photos written to edited, 23 skipped" in applied("photos", *MANIFEST).output
    assert edited() == before


def test_other_options_are_another_result(applied) -> None:
    assert applied("photos", *MANIFEST).exit_code == 0
    result = applied("photos", *MANIFEST, "--strength", 0.5)
    assert "24 of 24 photos written" in result.output and len(edited()) == 48
    assert "24 skipped" in applied("photos", *MANIFEST).output
    assert {record["direction"] for record in records()} == {"old:1", "old:0.5"}


def test_failed_photos_are_tried_again_when_asked_to(applied) -> None:
    Path("photos/photo-5.png").write_bytes(b"no photo")
    said(applied("photos", *MANIFEST), "photo-5.png")
    said(applied("photos", *MANIFEST), "photo-5.png", "earlier run", "--retry")
    Path("photos/photo-5.png").write_bytes(Path("photos/photo-6.png").read_bytes())
    assert applied("photos", *MANIFEST).exit_code == 1
    result = applied("photos", *MANIFEST, "--retry")
    assert result.exit_code == 0 and "1 of 24 photos written to edited, 23 skipped" in result.output
    assert len(records()) == 24 and not any(record["error"] for record in records())


def test_nothing_that_another_wrote_is_replaced(applied) -> None:
    Path("edited").mkdir()
    Path("edited/photo-2-old.png").write_bytes(b"a picture")
    said(applied("photos", *MANIFEST), "photo-2-old.png exists already")
    assert Path("edited/photo-2-old.png").read_bytes() == b"a picture" and len(edited()) == 24
    failed(applied("photos/photo-0.png", *MANIFEST, "--output", "file", "--skip-existing"), 2, "--skip-existing")


def test_a_full_disk_ends_the_run_and_it_goes_on(applied, monkeypatch: pytest.MonkeyPatch) -> None:
    assert applied("photos", "--output", "whole").exit_code == 0
    written, write = Counter[str](), Path.write_bytes

    def refuse(path: Path, content: bytes) -> int:
        written["files"] += 1
        if written["files"] > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", refuse)
        failed(applied("photos", *MANIFEST), 1, "No space left", "same command then goes on")
    assert len(edited()) == 10 and len(records()) <= 10
    assert applied("photos", *MANIFEST).exit_code == 0
    assert len(records()) == 24 and len(edited()) == 24


def test_photos_and_results_at_addresses(applied) -> None:
    store = f"memory:///{uuid4().hex}"
    for i in range(3):
        write_bytes(f"{store}/in/photo-{i}.png", Path(f"photos/photo-{i}.png").read_bytes())
    more = ("--manifest", "store.jsonl", "--output", f"{store}/out")
    assert "3 of 3 photos written" in applied(f"{store}/in", *more).output
    assert files_in(f"{store}/out") == [f"{store}/out/photo-{i}-old.png" for i in range(3)]
    assert applied(*(f"photos/photo-{i}.png" for i in range(3)), "--output", "whole", *MANIFEST).exit_code == 0
    assert [read_bytes(file) for file in files_in(f"{store}/out")] == list(edited("whole").values())
    assert "3 skipped" in applied(f"{store}/in", *more).output
    failed(applied(f"{store}/none", *more), 2, f"{store}/none does not exist")


def test_a_store_that_refuses_ends_the_run(applied, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
    more = ("--manifest", "store.jsonl", "--output", "memory://locked")
    result = applied("photos", *more)
    failed(result, 1, "memory://locked/", "Forbidden", "rights")
    assert result.output.count("Forbidden") == 1 and Path("store.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--retry",), ("--retry", "--manifest")),
        (("--address", "host:1"), ("host:1", "--engine ray")),
        (("--grid", *MANIFEST), ("--grid", "manifest")),
        (("--manifest", "s3://bucket/done.jsonl"), ("s3://bucket/done.jsonl", "file of this machine")),
        (("--grid", "--output", "memory://out"), ("--grid", "memory://out")),
        (("--engine", "spark"), ("spark",)),
    ],
)
def test_options_that_do_not_go_together(applied, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = applied("photos", *arguments)
    assert result.exit_code == 2 and all(word in result.output for word in words), result.output
