"""Banks on the Hugging Face hub: directions with their previews, and a model card that is written for them.

What comes from there is a stranger's: only files of a direction's name and size are fetched, each is checked as any
direction file is, and previews are decoded and encoded anew; cards are written from the checked header.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from directions.bank.bank import Bank, card_of, read_any
from directions.bank.card import target
from directions.bank.entry import PREVIEW, SUFFIX, Entry
from directions.bank.pictures import read_picture, to_png
from directions.bank.sampler_card import asked
from directions.file.metadata import check_name
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.markdown import plain, table

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FILE_LIMIT = 64 << 20  # bytes of a direction that is fetched; those of 64x64 images have 0.3 million
COUNT_LIMIT = 500
_PATIENCE = 15  # seconds to wait for the hub's first answer


def push(entries: Sequence[Entry], repository: str, *, private: bool = False) -> str:
    """Put directions, previews and a README into a repository, which is made if there is none; returns its address.

    Raises UsageError for a wrong name and no direction, FlowgradError where the hub cannot be reached or refuses.
    """
    if not entries:
        raise UsageError("there is no direction to push. Train one, or name others.")
    api = _api(repository)
    with tempfile.TemporaryDirectory() as folder:
        for entry in entries:
            read_any(entry.path)  # a damaged file is not passed on
            place = Path(folder, entry.model)
            place.mkdir(exist_ok=True)
            shutil.copy(entry.path, place)
            if preview := entry.read_preview():
                (place / entry.path.name).with_suffix(PREVIEW).write_bytes(preview)
        with _reaching(repository):
            url = api.create_repo(repository, private=private, exist_ok=True)
            _, sizes = _list(api, repository)
            others = sorted(set(_directions(sizes)) - {(entry.model, entry.name) for entry in entries})
            Path(folder, "README.md").write_text(to_readme(repository, entries, others), encoding="utf-8")
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{len(entries)} directions")
    return str(url)


def pull(
    repository: str, bank: Bank, names: Sequence[str] = (), *, overwrite: bool = False, revision: str | None = None
) -> Iterator[Entry | FlowgradError]:
    """Fetch directions (all, or those of `names`) and put them into a bank; one that is refused is an error among them.

    Raises UsageError for a wrong or unknown name, FlowgradError where the hub cannot be reached.
    """
    api = _api(repository)
    with _reaching(repository):
        commit, sizes = _list(api, repository, revision)
    found = _directions(sizes)
    if missing := sorted(set(names) - {name for _, name in found}):
        there = ", ".join(name for _, name in found) or "none"
        raise UsageError(f"{repository} has no direction called {', '.join(missing)}; there is {there}")
    wanted = [(model, name) for model, name in found if not names or name in names]
    paths = [f"{model}/{name}{suffix}" for model, name in wanted for suffix in (SUFFIX, PREVIEW)]
    fetched = [path for path in paths if sizes.get(path, 0) <= FILE_LIMIT]
    with tempfile.TemporaryDirectory() as folder:
        with _reaching(repository):
            api.snapshot_download(repository, revision=commit, allow_patterns=fetched, local_dir=folder)
        for model, name in wanted:
            try:
                yield _add(Path(folder, model, name + SUFFIX), bank, overwrite)
            except FlowgradError as error:
                yield error


def to_readme(repository: str, entries: Sequence[Entry], others: Sequence[tuple[str, str]] = ()) -> str:
    """A model card: tags for the hub, then what each direction does and how to use it.

    others: (model, name) of directions that are in the repository already.
    """
    from huggingface_hub import ModelCardData

    models = sorted({entry.model for entry in entries} | {model for model, _ in others})
    infos = [info for entry in entries if (info := entry.info or entry.sampler)]
    licences = sorted({info.license for info in infos if info.license})
    tags = ["flowgrad", "flow-direction", "image-editing", *models]
    head = ModelCardData(library_name="flowgrad", pipeline_tag="image-to-image", license="other", tags=tags)
    rows = [(entry.name, entry.model, plain(_asked(entry))) for entry in entries]
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# Directions for {', '.join(models)}",
        "Global semantic directions in a frozen generative ODE.",
        f"```bash\nflowgrad bank pull {repository}\n```",
        table(("direction", "model", "text"), [*rows, *((name, model, "") for model, name in others)]),
    ]
    if licences:
        parts += ["## Licence", "\n".join(f"* {plain(licence)}" for licence in licences)]
    return "\n\n".join(parts) + "\n"


def _asked(entry: Entry) -> str:
    """What an entry is for, on one line."""
    if entry.sampler:
        return f"sampler: {asked(entry.sampler)}"
    return target(entry.info) if entry.info else ""


def _api(repository: str) -> "HfApi":
    """The hub's client. Raises UsageError for a name that is no repository's, FlowgradError if it is not installed."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise FlowgradError("sharing needs huggingface-hub. Run: pip install 'flowgrad[hub]'") from error
    try:
        owner, name = repository.split("/")
        validate_repo_id(f"{owner}/{name}")
    except ValueError as error:
        raise UsageError(
            f"{repository!r} names no repository. Write OWNER/NAME, for example me/my-directions."
        ) from error
    return HfApi()


def _list(api: "HfApi", repository: str, revision: str | None = None) -> tuple[str | None, dict[str, int]]:
    """The commit of a revision, and the bytes of its files by path."""
    info = api.model_info(repository, revision=revision, files_metadata=True, timeout=_PATIENCE)
    return info.sha, {file.rfilename: file.size for file in info.siblings or () if file.size is not None}


def _directions(paths: Iterable[str]) -> list[tuple[str, str]]:
    """(model, name) of the directions among files; whatever else a repository holds is left alone."""
    found = []
    for path in sorted(paths):
        model, _, file = path.partition("/")
        with suppress(UsageError):  # a name that no bank may have
            if file.endswith(SUFFIX):
                found.append((check_name(model, "model"), check_name(file.removesuffix(SUFFIX))))
    return found[:COUNT_LIMIT]


def _add(path: Path, bank: Bank, overwrite: bool) -> Entry:
    """Check a direction that was fetched, and put it into the bank. Raises FlowgradError."""
    model, name = path.parent.name, path.stem
    if not path.exists():
        raise FlowgradError(f"{model}/{name} is too large: at most {FILE_LIMIT >> 20} MB are fetched")
    content = read_any(path)
    if content.info.model != model:
        raise FlowgradError(f"{model}/{name} was made for {content.info.model}: it lies in a wrong folder")
    picture = read_picture(path.with_suffix(PREVIEW))
    preview, card = to_png(picture) if picture else None, card_of(name, content.info)
    return bank.add(content, name, preview=preview, card=card, overwrite=overwrite)


@contextmanager
def _reaching(repository: str) -> Iterator[None]:
    """Turn what the hub's client raises into an error that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]  # httpx's or requests', as the client's version has it
    try:
        yield
    except (http_error, OSError, ValueError) as error:
        code = getattr(getattr(error, "response", None), "status_code", None)
        if code is None:
            remedy = "Check the network; `bank export` and `bank import` need none."
            raise FlowgradError(f"the hub cannot be reached ({str(error).splitlines()[0]}). {remedy}") from error
        remedy = "Check the name, and log in with: hf auth login" if code in (401, 403, 404) else "Try again later."
        raise FlowgradError(f"the hub refused {repository} ({code}). {remedy}") from error
