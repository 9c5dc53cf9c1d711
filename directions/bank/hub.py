"""Banks on the Hugging Face hub: directions with their previews, and a model card that is written for them.

What comes from there is a stranger's: only files of a direction's name and size are fetched, each is checked as any
direction file is, and previews are decoded and encoded anew; cards are written from the checked header.
"""

import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from directions.bank.bank import PREVIEW, SUFFIX, Bank, Entry
from directions.bank.card import target, to_card
from directions.file.direction import check_name, read_direction
from flowgrad.errors import FlowgradError, UsageError

FILE_LIMIT = 64 << 20  # bytes of a direction that is fetched; those of 64x64 images have 0.3 million
COUNT_LIMIT = 500
_PATIENCE = 15  # seconds to wait for the hub's first answer
PREVIEW_PIXELS = 8_000_000
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Remote:
    """A direction in a repository: its model and name, its file's size in bytes, and whether to fetch a preview."""

    model: str
    name: str
    size: int
    preview: bool


def push(entries: Sequence[Entry], repository: str, *, private: bool = False, token: str | None = None) -> str:
    """Put directions, previews and a README into a repository, which is made if there is none; returns its address.

    Raises UsageError for a wrong name and no direction, FlowgradError where the hub cannot be reached or refuses.
    """
    if not entries:
        raise UsageError("there is no direction to push. Train one, or name others.")
    api = _api(repository, token)
    files = {f"{entry.model}/{entry.name}{SUFFIX}": _checked_bytes(entry) for entry in entries}
    files |= {f"{e.model}/{e.name}{PREVIEW}": e.preview.read_bytes() for e in entries if e.preview}
    with _reaching(repository):
        url = api.create_repo(repository, private=private, exist_ok=True)
        known = {(each.model, each.name) for each in _list(api, repository)}
        others = sorted(known - {(entry.model, entry.name) for entry in entries})
        files["README.md"] = to_readme(repository, entries, others).encode()
        _commit(api, repository, files, f"{len(entries)} directions")
    return str(url)


def pull(
    repository: str,
    bank: Bank,
    names: Sequence[str] = (),
    *,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> Iterator[Entry | FlowgradError]:
    """Fetch directions (all, or those of `names`) and put them into a bank; one that is refused is an error among them.

    Raises UsageError for a wrong or unknown name, FlowgradError where the hub cannot be reached.
    """
    api = _api(repository, token)
    with _reaching(repository):
        api.repo_info(repository, revision=revision, timeout=_PATIENCE)  # fails at once, where listing tries for long
        found = _list(api, repository, revision)
    if missing := sorted(set(names) - {each.name for each in found}):
        there = ", ".join(each.name for each in found) or "none"
        raise UsageError(f"{repository} has no direction called {', '.join(missing)}; there is {there}")
    for each in found:
        if not names or each.name in names:
            yield _fetch(api, repository, each, bank, overwrite, revision)


def to_readme(repository: str, entries: Sequence[Entry], others: Sequence[tuple[str, str]] = ()) -> str:
    """A model card: tags for the hub, then what each direction does and how to use it.

    others: (model, name) of directions that are in the repository already.
    """
    models = sorted({entry.model for entry in entries} | {model for model, _ in others})
    licences = sorted({entry.info.license for entry in entries if entry.info and entry.info.license})
    tags = ["flowgrad", "flow-direction", "image-editing", *models]
    head = ["---", "library_name: flowgrad", "pipeline_tag: image-to-image", "license: other", "tags:"]
    head += [f"- {tag}" for tag in tags] + ["---", ""]
    lines = [f"# Directions for {', '.join(models)}", "", "Global semantic directions in a frozen generative ODE.", ""]
    lines += ["```bash", f"flowgrad bank pull {repository}", "```", ""]
    lines += ["| direction | model | text |", "| --- | --- | --- |"]
    lines += [f"| {e.name} | {e.model} | {_cell(target(e.info)) if e.info else ''} |" for e in entries]
    lines += [f"| {name} | {model} | |" for model, name in others]
    if licences:
        lines += ["", "## Licence", "", *(f"* {_cell(licence)}" for licence in licences)]
    return "\n".join([*head, *lines, ""])


def _cell(text: str) -> str:
    """A text as a table's cell in Markdown, in which nothing of it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _checked_bytes(entry: Entry) -> bytes:
    entry.load()  # a damaged file is not passed on
    return entry.path.read_bytes()


def _api(repository: str, token: str | None) -> Any:
    """The hub's client. Raises UsageError for a name that is no repository's, FlowgradError if it is not installed."""
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise UsageError(f"{repository!r} names no repository. Write OWNER/NAME, for example me/my-directions.")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise FlowgradError("sharing needs huggingface-hub. Run: pip install 'flowgrad[hub]'") from error
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)


def _commit(api: Any, repository: str, files: dict[str, bytes], message: str) -> None:
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=raw) for path, raw in files.items()]
    api.create_commit(repository, operations, commit_message=message)


def _list(api: Any, repository: str, revision: str | None = None) -> list[Remote]:
    """The directions of a repository; whatever else it holds is left alone."""
    found = list(api.list_repo_tree(repository, recursive=True, revision=revision))
    sizes = {each.path: each.size for each in found if getattr(each, "size", None) is not None}
    remotes = [_remote(path, size, sizes) for path, size in sorted(sizes.items())]
    return [each for each in remotes if each is not None][:COUNT_LIMIT]


def _remote(path: str, size: int, sizes: Mapping[str, int]) -> Remote | None:
    model, _, file = path.partition("/")
    name = file.removesuffix(SUFFIX)
    try:
        check_name(model, "model"), check_name(name)
    except UsageError:  # not a direction's file, or one with a name that no bank may have
        return None
    preview = sizes.get(f"{model}/{name}{PREVIEW}", FILE_LIMIT + 1) <= FILE_LIMIT
    return Remote(model, name, size, preview) if file.endswith(SUFFIX) else None


def _fetch(
    api: Any, repository: str, remote: Remote, bank: Bank, overwrite: bool, revision: str | None
) -> Entry | FlowgradError:
    try:
        if remote.size > FILE_LIMIT:
            told = f"{remote.size >> 20} MB, at most {FILE_LIMIT >> 20} are fetched"
            raise FlowgradError(f"{repository}: {remote.model}/{remote.name} is too large: {told}")
        with tempfile.TemporaryDirectory() as folder, _reaching(repository):
            stem = f"{remote.model}/{remote.name}"
            path = Path(_download(api, repository, stem + SUFFIX, folder, revision))
            direction = read_direction(path)
            if direction.info.model != remote.model:
                told = f"was made for {direction.info.model}: it lies in a wrong folder"
                raise FlowgradError(f"{repository}: {stem} {told}")
            raw = Path(_download(api, repository, stem + PREVIEW, folder, revision)) if remote.preview else None
            card, picture = to_card(remote.name, direction.info), safe_preview(raw) if raw else None
            return bank.add(direction, remote.name, preview=picture, card=card, overwrite=overwrite)
    except FlowgradError as error:
        return error


def _download(api: Any, repository: str, path: str, folder: str, revision: str | None) -> str:
    return str(api.hf_hub_download(repository, path, local_dir=folder, revision=revision))


def safe_preview(path: Path) -> bytes | None:
    """A picture from elsewhere as a new PNG; None for what is none, or an enormous one."""
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG",)) as image:
                if image.width * image.height > PREVIEW_PIXELS:
                    return None
                image.convert("RGB").save(buffer, "PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return buffer.getvalue()


@contextmanager
def _reaching(repository: str) -> Iterator[None]:
    """Turn what the hub's client raises into an error that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]  # httpx's or requests', as the client's version has it
    try:
        yield
    except FlowgradError:
        raise
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", "no answer")
        remedy = "Check the name, and log in with: hf auth login" if code in (401, 403, 404) else "Try again later."
        raise FlowgradError(f"the hub refused {repository} ({code}). {remedy}") from error
    except (http_error, OSError) as error:
        remedy = "Check the network; `bank export` and `bank import` need none."
        raise FlowgradError(f"the hub cannot be reached ({str(error).splitlines()[0]}). {remedy}") from error
    except ValueError as error:
        raise FlowgradError(f"the hub refused {repository}: {str(error).splitlines()[0]}") from error
