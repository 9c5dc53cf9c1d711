"""Where photos are found: in archives, tables, patterns, lists and stores, and what damaged ones are."""

import io
import pickle
import tarfile
from pathlib import Path
from uuid import uuid4

import pytest
from PIL import Image

from directions.photo.reading import BYTES_LIMIT
from directions.photo.sources import Source, find_sources
from flowgrad.addresses import write_bytes
from flowgrad.errors import FlowgradError, UsageError


def picture(level: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (level, 0, 0)).save(file, kind)
    return file.getvalue()


CONTENTS = {f"{i:03d}.png": picture(i) for i in range(5)}


def to_tar(mode: str = "w") -> bytes:
    """A shard as WebDataset has it: a label beside each picture, and what is no picture of its own."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in CONTENTS.items():
            for member, data in ((name, content), (name.replace(".png", ".json"), b"{}"), (f".{name}", b"")):
                info = tarfile.TarInfo(f"part/{member}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def to_parquet(records: bool) -> bytes:
    """A table of several groups of rows."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    cells = [{"bytes": data, "path": name} if records else data for name, data in CONTENTS.items()]
    file = io.BytesIO()
    write_table(pyarrow.table({"label": list(range(5)), "image": cells}), file, row_group_size=2)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "records.parquet", "bytes.parquet"])
@pytest.mark.parametrize("where", ["path", "memory"])
def test_photos_of_one_file_are_found_and_read_in_any_order(tmp_path: Path, kind: str, where: str) -> None:
    if "parquet" in kind:
        content = to_parquet(kind.startswith("records"))
    else:
        content = to_tar({"gz": "w:gz", "tgz": "w:gz", "xz": "w:xz"}.get(kind.split(".")[-1], "w"))
    folder = str(tmp_path) if where == "path" else f"memory:///{uuid4().hex}"
    place = tmp_path / kind if where == "path" else f"{folder}/{kind}"
    write_bytes(place, content)
    for named in (str(place), folder, f"{folder}/*.{kind.split('.')[-1]}"):
        sources = find_sources([named])
        assert [source.read() for source in sources] == list(CONTENTS.values())
    for source in pickle.loads(pickle.dumps(sources[::-1])):
        assert source.read() == CONTENTS[list(CONTENTS)[sources.index(source)]]
    assert str(sources[1]).startswith(f"{place}/") and sources[1].container == kind.split(".")[0]
    suffixes = {source.suffix for source in sources}
    assert suffixes == ({""} if kind == "bytes.parquet" else {".png"})


@pytest.mark.parametrize("cut", [700, 1800, 5000])
def test_of_a_damaged_archive_the_rest_is_one_source_that_says_so(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.tar").write_bytes(to_tar()[:cut])
    sources = find_sources([str(tmp_path)])
    *whole, rest = sources
    assert [source.read() for source in whole] == list(CONTENTS.values())[: len(whole)] and len(whole) < 5
    with pytest.raises(FlowgradError, match=r"a\.tar is damaged"):
        rest.read()


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_what_is_no_archive_is_one_source_that_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind" * 100)
    (tmp_path / "photo.png").write_bytes(CONTENTS["000.png"])
    broken, photo = find_sources([str(tmp_path / name), str(tmp_path / "photo.png")])
    assert photo.read() == CONTENTS["000.png"]
    with pytest.raises(FlowgradError, match=rf"{name} is damaged"):
        broken.read()


def test_an_archive_that_was_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(to_tar())
    *_, last = find_sources([str(tmp_path)])
    (tmp_path / "a.tar").write_bytes(to_tar()[:2000])
    with pytest.raises(FlowgradError, match=r"004\.png cannot be read: .*a\.tar is damaged"):
        last.read()


def test_what_has_more_bytes_than_any_photo_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(BYTES_LIMIT + 1)  # which takes no room on the disk
    with pytest.raises(FlowgradError, match=r"large.jpg has 0.96 GB: no photo .* Leave it out"):
        Source(large).read()
    monkeypatch.setattr("directions.photo.sources.BYTES_LIMIT", 20)
    (tmp_path / "a.tar.gz").write_bytes(to_tar("w:gz"))
    with pytest.raises(FlowgradError, match=r"a.tar.gz/part/000.png has"):
        find_sources([str(tmp_path / "a.tar.gz")])[0].read()
    with pytest.raises(FlowgradError, match="No such file"):
        Source(tmp_path / "absent.jpg").read()


def test_names_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    lines = [f"{tmp_path}/003.png", "", f"{tmp_path}/00[01].png", f"{tmp_path}/003.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert [source.name for source in find_sources(["-", str(tmp_path / "004.png")])] == [
        "003.png",
        "000.png",
        "001.png",
        "004.png",
    ]


def test_all_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.png, .*x\*\.tar do not exist"):
        find_sources([str(tmp_path / "none.png"), str(tmp_path / "x*.tar")])


@pytest.mark.parametrize(
    "cell", [1, [b"a"], {"bytes": "text", "path": "a.jpg"}, {"bytes": b"a", "path": 3}, {"bytes": b"a"}]
)
def test_a_table_without_pictures_says_so(tmp_path: Path, cell: object) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"label": [cell]}), tmp_path / "labels.parquet")
    (labels,) = find_sources([str(tmp_path / "labels.parquet")])
    with pytest.raises(FlowgradError, match=r"labels\.parquet has no column of pictures.*label"):
        labels.read()


def test_a_source_is_named_by_its_own_parts() -> None:
    source = Source("s3://bucket/shards/00001.tar.gz", "part/a.b.JPG", 512, 10)
    assert (source.name, source.stem, source.suffix, source.container) == ("a.b.JPG", "a.b", ".JPG", "00001")
    assert source.folder == "shards" and str(source) == "s3://bucket/shards/00001.tar.gz/part/a.b.JPG"
