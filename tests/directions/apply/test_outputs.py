"""Where results go: what their names say, and that no two are one."""

import os
from itertools import islice
from pathlib import Path

import pytest

from directions.apply.outputs import (
    DONE_LIMIT,
    NAME_LIMIT,
    Inputs,
    check_apart,
    check_output,
    done_by,
    output_paths,
    remove_unfinished,
    slug,
)
from directions.photo.sources import Source
from flowgrad.errors import UsageError
from tests.helpers.paths import killed_write

OUT = Path("edited")


def names(photos: list[str], done: str = "old", png: bool = False) -> list[str]:
    paths = list(output_paths((Source(Path(photo)) for photo in photos), OUT, done, png))
    assert all(isinstance(path, Path) and path.parent == OUT for path in paths)
    return [Path(path).name for path in paths]


@pytest.mark.parametrize(
    ("parts", "done"),
    [
        ([("smiling", 1.0)], "smiling"),
        ([("smiling", 0.8), ("old", -0.25)], "smiling@0.8+old@-0.25"),
        ([("faces64/smiling", 1.0), ("mine/My Own.safetensors", 0.0)], "smiling+My-Own@0"),
        ([("../..", 1.0)], "edited"),
    ],
)
def test_a_mixture_is_named_by_its_directions_and_strengths(parts: list[tuple[str, float]], done: str) -> None:
    assert done_by(parts) == done


def test_names_of_what_was_done_are_short_and_differ() -> None:
    many = [done_by([("ä" * 40, 1.0)] * 20 + [("old", strength)]) for strength in (0.5, 0.25)]
    assert len(set(many)) == 2 and all(len(os.fsencode(done)) <= DONE_LIMIT for done in many)
    assert slug("An old/young face: 50 %\n") == "An-old-young-face-50"
    assert slug("!") == "edited"


def test_results_keep_the_photos_names_and_kinds() -> None:
    assert names(["a/photo.JPG", "b.heic", "c.tar.png"]) == ["photo-old.JPG", "b-old.png", "c.tar-old.png"]
    assert names(["a/photo.jpg"], "old-strip", png=True) == ["photo-old-strip.png"]


def test_names_never_meet() -> None:
    photos = ["a/x.png", "b/x.png", "b/x.bmp", "b/X.PNG", "b/x.gif", "x-2.png", "b-x.png"]
    found = names(photos)
    assert found[:3] == ["x-old.png", "b-x-old.png", "x-2-old.png"]
    assert len({name.casefold() for name in found}) == len(photos)
    taken = list(output_paths([Source(Path("a/x.png"))], OUT, "old", taken=[OUT / "x-old.png"]))
    assert taken == [OUT / "a-x-old.png"]


@pytest.mark.parametrize("name", ["x" * 251, "ü" * 125 + "x", "\udcff" * 251])
def test_long_names_are_shortened_and_never_meet(name: str) -> None:
    found = names([f"{folder}/{name}.png" for folder in "abcd"])
    assert len(set(found)) == 4 and all(len(os.fsencode(name)) <= NAME_LIMIT for name in found)
    assert all(name.endswith("-old.png") for name in found)


def test_names_are_decided_one_at_a_time() -> None:
    asked = []

    def endless() -> object:
        for i in range(10**9):
            asked.append(i)
            yield Source(Path(f"folder-{i % 2}/photo.png"))

    assert len(list(islice(output_paths(endless(), OUT, "old"), 5))) == 5  # type: ignore[arg-type]
    assert len(asked) == 5


def test_many_photos_of_one_name_take_no_longer_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from directions.apply import outputs

    tried, joined = [], outputs._joined
    monkeypatch.setattr(outputs, "_joined", lambda *parts: tried.append(parts) or joined(*parts))
    assert len(set(names(["a/photo.png"] * 1000))) == 1000
    assert len(tried) <= 3 * 1000


def test_photos_are_never_replaced(tmp_path: Path) -> None:
    photo, link = tmp_path / "photo.png", tmp_path / "link.png"
    photo.write_bytes(b"a photo")
    link.symlink_to(photo)
    for overwrite in (False, True):
        for output in (photo, link, tmp_path / "no" / ".." / "photo.png"):
            (tmp_path / "no").mkdir(exist_ok=True)
            with pytest.raises(UsageError, match="photos themselves"):
                check_output(output, Inputs([Source(photo)]), overwrite)
    check_output(tmp_path / "other.png", Inputs([Source(photo)]), overwrite=False)


def test_results_that_would_lie_among_the_photos_are_noticed(tmp_path: Path) -> None:
    sources = [Source(tmp_path / "a" / "x.png"), Source("s3://bucket/b/x.png"), Source("s3://bucket/c.tar", "x.png")]
    for folder in (tmp_path / "b" / ".." / "a", "s3://bucket/b/", "s3://bucket"):
        with pytest.raises(UsageError, match="holds photos"):
            check_apart(folder, sources)
    check_apart(tmp_path, sources)
    check_apart("s3://bucket/c", sources)


def test_photos_of_archives_go_to_folders_of_their_own() -> None:
    files = ["a/1.tar", "b/1.tar.gz", "b/x.png"]
    sources = [Source(Path(file), member) for file in files[:2] for member in ("p/x.png", "q/x.png", "x.bmp")]
    found = [str(path) for path in output_paths([*sources, Source(Path(files[2]))], OUT, "old")]
    assert found[:3] == ["edited/1/x-old.png", "edited/1/q-x-old.png", "edited/1/x-2-old.png"]
    assert found[3:6] == [path.replace("/1/", "/b-1/") for path in found[:3]] and found[6] == "edited/x-old.png"
    assert list(output_paths(sources[:1], "s3://bucket/out", "old")) == ["s3://bucket/out/1/x-old.png"]


def test_beginnings_that_a_killed_run_left_are_removed(tmp_path: Path) -> None:
    left = killed_write(tmp_path / "1" / "x-old@0.5.png")
    others = [tmp_path / name for name in ("x-old@0.5.png", ".x-old-0123abcd.png", ".hidden", ".x-old@0.5-notes.png")]
    for path in others:
        path.touch()
    remove_unfinished(tmp_path, "old@0.5")
    assert not left.exists() and all(path.exists() for path in others)
