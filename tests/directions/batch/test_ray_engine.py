"""What is given to a cluster's workers, and a small cluster on this machine."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from directions.apply.targets import Known
from directions.apply.wanted import Wanted
from directions.batch.ray_engine import LARGEST, SMALLEST, Job, find_shards, read_known, shares, usual_workers
from directions.photo.sources import Source
from flowgrad.addresses import write_bytes
from flowgrad.errors import FlowgradError, UsageError
from tests.helpers.command_line import call, failed


def job(manifest: Path, **changes: object) -> Job:
    plain = Job("tiny", "cpu", "fp32", np.zeros((1, 1, 3, 4, 4)), (0,), 6, Wanted(), "old:1", "a", manifest)
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, SMALLEST, 1000, 70_000])
def test_every_photo_is_in_one_shard(tmp_path: Path, count: int) -> None:
    sources = [Source(Path(f"{i}.png")) for i in range(count)]
    outputs = [Path(f"out-{i}.png") for i in range(count)]
    shards = list(find_shards(sources, outputs, {"0.png": Known("", "", "")}))
    assert [source for shard in shards for source in shard.sources] == sources
    assert [output for shard in shards for output in shard.outputs] == outputs
    assert max(len(shard.sources) for shard in shards) <= LARGEST
    assert len(shards) >= min(math.ceil(count / SMALLEST), 256)
    assert [len(shard.known) for shard in shards] == [1, *[0] * (len(shards) - 1)]
    parts = {shard.part(job(tmp_path)) for shard in shards}
    assert len(parts) == len(shards)
    assert parts == {shard.part(job(tmp_path)) for shard in find_shards(sources, outputs, {})}
    assert parts.isdisjoint(shard.part(job(tmp_path, options="b")) for shard in shards)


@pytest.mark.parametrize(
    ("resources", "workers", "shared"),
    [
        ({"CPU": 2}, 2, (1, 0.0)),
        ({"CPU": 64, "GPU": 8}, 32, (2, 0.25)),
        ({"CPU": 6, "GPU": 4}, 6, (1, 0.66)),
        ({"CPU": 2, "GPU": 4}, 2, (1, 2.0)),
        ({}, 1, (1, 0.0)),
    ],
)
def test_workers_share_what_a_cluster_has(resources: dict, workers: int, shared: tuple[int, float]) -> None:
    assert usual_workers(resources) == workers and shares(resources, workers) == shared
    assert shares(resources, workers)[1] * workers <= resources.get("GPU", 0)


def record(name: str, error: str | None, options: str = "a") -> dict:
    keys = ("sha256", "output", "direction", "strength", "distance", "verdict", "unedited")
    return {**dict.fromkeys(keys, ""), "input": name, "error": error, "options": options}


def test_what_is_done_in_one_part_of_a_manifest_is_done(tmp_path: Path) -> None:
    assert read_known(job(tmp_path / "none")) == {}
    parts = {
        "1": [record("a", "damaged"), record("b", None), record("c", "damaged")],
        "2": [record("a", None), record("b", "damaged"), record("d", None, options="b")],
    }
    for name, records in parts.items():
        write_bytes(tmp_path / f"{name}.jsonl", b"".join(json.dumps(r).encode() + b"\n" for r in records))
    known = read_known(job(tmp_path))
    assert {name: k.error for name, k in known.items()} == {"a": "", "b": "", "c": "damaged"}
    assert set(read_known(job(tmp_path, retry=True))) == {"a", "b"}
    with pytest.raises(UsageError, match=r"1\.jsonl is a file"):
        read_known(job(tmp_path / "1.jsonl"))
    (tmp_path / "3.jsonl").write_bytes(b"a letter\n")
    with pytest.raises(FlowgradError, match=r"3\.jsonl is no manifest"):
        read_known(job(tmp_path))


@pytest.mark.slow
def test_a_cluster_of_one_machine_edits_goes_on_and_fails_clearly(applied, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no photo")
    arguments = (tmp_path / "photos", "--engine", "ray", "--workers", 1)
    result = applied(*arguments, "--workers", 2, "--json")
    files = json.loads(result.stdout)["files"]
    assert result.exit_code == 1 and len(files) == 25 and sum(file["error"] is not None for file in files) == 1
    times = {path: path.stat().st_mtime_ns for path in Path("edited").rglob("*.*")}
    assert applied(*arguments).stdout.count("skipped edited/") == 24
    assert {path: path.stat().st_mtime_ns for path in Path("edited").rglob("*.*")} == times
    (tmp_path / "photos" / "broken.png").write_bytes((tmp_path / "photos" / "photo-0.png").read_bytes())
    result = applied(*arguments, "--retry", "--json")
    assert result.exit_code == 0 and sum(not file["skipped"] for file in json.loads(result.stdout)["files"]) == 1
    lines = [json.loads(line) for part in Path("edited/manifest").iterdir() for line in part.open()]
    assert len(lines) == len({line["input"] for line in lines}) == 25
    Path("file").write_text("")
    failed(applied(*arguments, "--output", "file/below"), 2, "file is a file")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_named(applied) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    failed(call("cluster-check", "--address", "127.0.0.1:1"), 1, "127.0.0.1:1", "ray start")
