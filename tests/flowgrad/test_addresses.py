"""Files at paths and at addresses: the same functions, and errors that name the address and the remedy."""

from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from flowgrad.addresses import (
    Place,
    StorageError,
    below,
    exists,
    files_in,
    is_folder,
    is_pattern,
    matching,
    open_bytes,
    read_bytes,
    to_place,
    write_bytes,
)
from flowgrad.errors import FlowgradError, UsageError


@pytest.fixture(params=["path", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return tmp_path / "new" if request.param == "path" else f"memory:///{uuid4().hex}/new"


def test_what_is_a_place() -> None:
    assert to_place("photos/a.jpg") == Path("photos/a.jpg") and to_place("file:///tmp/a.jpg") == Path("/tmp/a.jpg")
    assert to_place("s3://bucket/a.jpg") == "s3://bucket/a.jpg"
    assert below("s3://bucket/out/", "a.jpg") == "s3://bucket/out/a.jpg" and below(Path("out"), "a") == Path("out/a")
    with pytest.raises(UsageError, match="is not the name of a file"):
        to_place("a\0b/*.jpg")


def test_files_are_written_read_and_found(folder: Place) -> None:
    file = below(folder, "b.bin")
    assert not exists(file)
    for content in (b"first", b"second"):
        write_bytes(file, content)
        assert exists(file) and read_bytes(file) == content
    write_bytes(below(folder, "a.bin"), b"a")
    write_bytes(below(below(folder, "deep"), "c.bin"), b"c")
    with open_bytes(file) as opened:
        opened.seek(2)
        assert opened.read(2) == b"co"
    assert is_folder(folder) and not is_folder(file)
    assert files_in(folder) == [below(folder, "a.bin"), file]
    for name, count in (("*.bin", 2), ("**/*.bin", 3), ("[b-z].bin", 1), ("*.png", 0)):
        pattern = below(folder, name)
        assert is_pattern(pattern) and len(matching(pattern)) == count
    assert not is_pattern(file)


def test_a_name_that_only_looks_like_a_pattern_is_a_name(folder: Place) -> None:
    file = below(folder, "a[1].bin")
    write_bytes(file, b"")
    assert not is_pattern(file)


def test_what_is_not_there_is_named(folder: Place) -> None:
    file = below(folder, "none.bin")
    for read in (read_bytes, open_bytes):
        with pytest.raises(FlowgradError, match=r"none\.bin"):
            read(file)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (PermissionError("Forbidden"), "Forbidden.*rights"),
        (TimeoutError("no answer in 5 s"), "no answer in 5 s.*connection"),
        (RuntimeError("what a store may raise"), "what a store may raise.*connection"),
    ],
)
def test_a_store_that_refuses_is_explained(raised: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise raised

    files = fsspec.filesystem("memory")
    for name, use in (
        ("cat_file", read_bytes),
        ("open", open_bytes),
        ("exists", exists),
        ("ls", files_in),
        ("pipe_file", lambda address: write_bytes(address, b"")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(type(files), name, refuse)
            with pytest.raises(StorageError, match=f"memory://bucket/a.*{words}.*run it again"):
                use("memory://bucket/a")


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(StorageError, match="nowhere://a"):
        read_bytes("nowhere://a")
