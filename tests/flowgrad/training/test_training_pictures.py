"""Sources of pictures: what is read, what is left out and counted, and what is refused."""

import errno
import io
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.training.data.pictures import (
    FEWEST,
    ImageSet,
    find_source,
    list_images,
    load_images,
    prepare_images,
    read_splits,
    to_square,
)
from tests.helpers.paths import killed_write

SIZE = 8


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def fill(folder: Path, count: int = FEWEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i).save(folder / f"{i:02d}.png")
    return folder


def prepared(source: str | Path, folder: Path) -> ImageSet:
    for _ in prepare_images(source, SIZE, folder):
        pass
    return load_images(folder)


def test_folder_is_searched_in_order_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    source = fill(tmp_path / "in")
    fill(source / "deeper", 2)
    fill(source / ".cache", 2)
    (source / "notes.txt").write_text("not a picture")
    images = prepared(source, tmp_path / "out")
    assert images.names == (*(f"{i:02d}.png" for i in range(FEWEST)), "deeper/00.png", "deeper/01.png")
    assert images.pixels.shape == (FEWEST + 2, SIZE, SIZE, 3)
    assert np.array_equal(images.pixels[0], to_square(encoded(picture(0)), SIZE))
    assert images.skipped == {}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_give_what_the_folder_gives(tmp_path: Path, kind: str) -> None:
    source = fill(tmp_path / "in")
    archive = tmp_path / f"in.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(source.iterdir()):
                file.write(path, path.name)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as file:
            for path in sorted(source.iterdir()):
                file.add(path, path.name)
    expected, found = prepared(source, tmp_path / "a"), prepared(archive, tmp_path / "b")
    assert found.names == expected.names
    assert np.array_equal(found.pixels, expected.pixels)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_data_sets_of_hugging_face_are_read(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, which is not there")
    from pyarrow import parquet

    rows = [{"bytes": encoded(picture(i)), "path": None} for i in range(FEWEST)]
    rows.append({"bytes": None, "path": None})
    rows += [{"bytes": None, "path": path} for path in ("/dev/zero", "../beside.png")]
    table = pyarrow.table({"label": list(range(len(rows))), "image": rows})
    source = tmp_path / "set"
    (source / "data").mkdir(parents=True)
    if kind == "parquet":
        parquet.write_table(table, source / "data" / "train-00000-of-00001.parquet")
    else:
        with pyarrow.ipc.new_stream(str(source / "data" / "part.arrow"), table.schema) as writer:
            writer.write_table(table)
    images = prepared(source, tmp_path / "out")
    assert len(images.names) == FEWEST
    assert np.array_equal(images.pixels[3], to_square(encoded(picture(3)), SIZE))
    assert images.skipped == {"empty row": 1, "outside the data set": 2}


def test_data_sets_of_the_hub_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[tuple[str, str]] = []

    def download(name: str, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((name, repo_type))
        assert "*.parquet" in allow_patterns and "*.png" in allow_patterns
        if len(asked) > 2:
            raise LocalEntryNotFoundError("no connection\nat all")
        return str(source)

    source = fill(tmp_path / "in")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_source("hf://some/shoes") == find_source("hf://datasets/some/shoes/") == source
    assert asked == [("some/shoes", "dataset")] * 2
    with pytest.raises(FlowgradError, match=r"hf://some/shoes cannot be downloaded \(no connection\): check the name"):
        prepared("hf://some/shoes", tmp_path / "out")
    for wrong in ("hf://shoes", "hf:some/shoes", "hf://a/b/c/d"):
        with pytest.raises(UsageError, match="written hf://owner/name"):
            find_source(wrong)


def test_tables_without_pyarrow_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "train.parquet").write_bytes(b"")
    with pytest.raises(FlowgradError, match=r"train.parquet needs pyarrow.*'flowgrad\[datasets\]'"):
        prepared(tmp_path, tmp_path / "out")


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    source = fill(tmp_path / "in")
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (source / "cut.png").write_bytes(encoded(picture(1))[:-60])
    (source / "empty.png").write_bytes(b"")
    picture(2, (SIZE, SIZE - 1)).save(source / "tiny.png")
    steps = list(prepare_images(source, SIZE, tmp_path / "out"))
    assert [step.done for step in steps] == list(range(1, FEWEST + 5))
    assert {step.name: step.skipped for step in steps if step.skipped} == {
        "broken.jpg": "unreadable",
        "cut.png": "unreadable",
        "empty.png": "unreadable",
        "tiny.png": f"smaller than {SIZE} pixels",
    }
    images = load_images(tmp_path / "out")
    assert images.skipped == {"unreadable": 3, f"smaller than {SIZE} pixels": 1}
    assert len(images.pixels) == len(images.names) == FEWEST


def test_damaged_members_of_an_archive_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(FEWEST + 1):
            file.writestr(f"{i:02d}.png", encoded(picture(i)))
        member = file.getinfo("03.png")
    content = bytearray(archive.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    content[start : start + 20] = b"\xff" * 20  # no deflate stream
    archive.write_bytes(content)
    assert prepared(archive, tmp_path / "out").skipped == {"unreadable": 1}


@pytest.mark.parametrize("kind", ["xz", ""])
def test_archives_that_are_damaged_in_the_middle_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in.tar"
    with tarfile.open(path, f"w:{kind}") as archive:
        archive.add(fill(tmp_path / "in"), "in")
    with tarfile.open(path) as archive:
        positions = [member.offset for member in archive]
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 if kind else positions[FEWEST // 2]  # of an archive as it is: the header of a file
    content[middle : middle + 100] = b"\x55" * 100
    path.write_bytes(content)
    with pytest.raises(FlowgradError, match="is a damaged archive"):
        list_images(path)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_files_that_would_fill_the_memory_are_left_out(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "in")
    (source / "zeros.png").write_bytes(bytes(10_000))
    if kind == "zip":
        shutil.make_archive(str(tmp_path / "packed"), "zip", source)
    elif kind == "tar":
        shutil.make_archive(str(tmp_path / "packed"), "gztar", source)
    path = {"folder": source, "zip": tmp_path / "packed.zip", "tar": tmp_path / "packed.tar.gz"}[kind]
    monkeypatch.setattr("flowgrad.training.data.pictures.LARGEST", 5_000)
    assert prepared(path, tmp_path / "out").skipped == {"too large": 1}


def test_no_programs_are_started_for_pictures_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    source = fill(tmp_path / "in")
    (source / "script.png").write_bytes(encoded(picture(0), "EPS"))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *told, **_: started.append(told))
    assert prepared(source, tmp_path / "out").skipped == {"unreadable": 1}
    assert started == []


def test_a_full_disk_is_no_unreadable_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def tobytes(self) -> bytes:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flowgrad.training.data.pictures.read_square", lambda *_: Full())
    with pytest.raises(FlowgradError, match=r"cannot write .*No space left"):
        prepared(fill(tmp_path / "in"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_preparation_left_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert killed_write(out / "images.npy").exists()
    prepared(fill(tmp_path / "in"), out)
    assert sorted(path.name for path in out.iterdir()) == ["images.json", "images.npy"]


def test_a_huge_picture_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = fill(tmp_path / "in")
    picture(1, (60, 60)).save(source / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert prepared(source, tmp_path / "out").skipped == {"too large": 1}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16"])
def test_all_modes_become_rgb(mode: str) -> None:
    image = picture(0, (SIZE, SIZE), mode if mode != "I;16" else "L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    square = to_square(encoded(image, "TIFF" if mode in ("CMYK", "I") else "PNG"), SIZE)
    assert square.shape == (SIZE, SIZE, 3)
    assert square.dtype == np.uint8
    if mode in ("L", "I;16"):
        assert np.array_equal(square[..., 0], np.asarray(picture(0, (SIZE, SIZE), "L")))


def test_transparency_lies_on_white_and_pictures_are_turned_upright() -> None:
    clear = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    assert (to_square(encoded(clear), SIZE) == 255).all()
    upright = picture(0, (SIZE, SIZE))
    exif = Image.Exif()
    exif[0x0112] = 3  # lies upside down
    turned = encoded(upright.rotate(180), "PNG", exif=exif)
    assert np.array_equal(to_square(turned, SIZE), np.asarray(upright))


def test_the_middle_is_kept() -> None:
    wide = Image.new("RGB", (3 * SIZE, SIZE), "red")
    wide.paste("blue", (SIZE, 0, 2 * SIZE, SIZE))
    assert (to_square(encoded(wide), SIZE) == (0, 0, 255)).all()


def test_prepared_pictures_are_used_again_until_the_source_changes(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in"), tmp_path / "out"
    before = prepared(source, out)
    assert list(prepare_images(source, SIZE, out)) == []
    os.utime(source / "00.png")
    assert prepared(source, out).key == before.key  # copied or touched, they are the same pictures
    picture(99).save(source / "99.png")
    after = prepared(source, out)
    assert len(after.names) == FEWEST + 1
    assert after.key != before.key
    assert len(list(prepare_images(source, SIZE - 2, out))) == FEWEST + 1  # another size


def test_an_interruption_leaves_nothing_that_looks_prepared(tmp_path: Path) -> None:
    steps = prepare_images(fill(tmp_path / "in"), SIZE, tmp_path / "out")
    next(steps)
    steps.close()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("count", "message"), [(0, "holds no pictures"), (1, "has 1 that can be used"), (FEWEST - 1, f"{FEWEST} pictures")]
)
def test_too_few_pictures_are_refused(tmp_path: Path, count: int, message: str) -> None:
    source = fill(tmp_path / "in", count)
    with pytest.raises(FlowgradError, match=message):
        prepared(source, tmp_path / "out")


def test_the_refusal_says_why_pictures_were_left_out(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", 2)
    (source / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(FlowgradError, match=r"has 2 that can be used \(left out: 1 unreadable\)"):
        prepared(source, tmp_path / "out")


def test_sources_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        prepared(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "a.txt").write_text("no archive")
    with pytest.raises(UsageError, match="neither a folder nor"):
        prepared(tmp_path / "a.txt", tmp_path / "out")


def test_damaged_preparations_are_refused(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in"), tmp_path / "out"
    prepared(source, out)
    (out / "images.npy").write_bytes(b"nothing")
    with pytest.raises(FlowgradError, match="damaged"):
        load_images(out)


def test_the_split_is_stable_and_by_table_where_one_is_given(tmp_path: Path) -> None:
    images = prepared(fill(tmp_path / "in", 40), tmp_path / "out")
    train, held_out = images.split(0.25)
    assert len(held_out) == 10
    assert sorted([*train, *held_out]) == list(range(40))
    table = tmp_path / "splits.csv"
    table.write_text("file,split\n" + "".join(f"{i:02d}.png,{'test' if i < 5 else 'train'}\n" for i in range(39)))
    train, held_out = images.split(0.25, table)
    assert held_out.tolist() == [0, 1, 2, 3, 4]
    assert train.tolist() == list(range(5, 39))  # 39 is not in the table
    table.write_text("file,split\n00.png,train\n")
    with pytest.raises(FlowgradError, match="got 1 and 0"):
        images.split(0.5, table)


def test_tables_of_splits_are_checked(tmp_path: Path) -> None:
    table = tmp_path / "splits.csv"
    with pytest.raises(UsageError, match="not a readable CSV"):
        read_splits(table)
    table.write_text("file,part\na,train\n")
    with pytest.raises(UsageError, match="no column 'split'"):
        read_splits(table)
    table.write_text("file,split\na,train\n", encoding="utf-8-sig")
    assert read_splits(table) == {"a": "train"}
