"""Files that hold many pictures: tar archives (WebDataset's shards among them), and Parquet tables."""

import tarfile
from collections.abc import Iterator
from typing import Any

from flowgrad.errors import FlowgradError

MISSING_PYARROW = "needs pyarrow, which is not installed: pip install 'flowgrad[datasets]'."


def tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of an archive in its order, of which none is kept in memory.

    Raises TarError at a header that cannot be read, where tarfile itself stops silently, and at a file that is cut off.
    """
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]
        if member.isfile():
            yield member
    unknown: Any = archive
    unknown.fileobj.seek(unknown.offset)
    if unknown.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # an archive ends with zeros
        raise tarfile.ReadError("bad header")


def picture_column(schema: Any) -> str | None:
    """The name of the first column that holds pictures, as records with `bytes` and `path` or as bytes; or None."""
    return next(
        (str(field.name) for is_kind in (_is_record, _is_bytes) for field in schema if is_kind(field.type)), None
    )


def _is_record(kind: Any) -> bool:
    """Whether a type is that of records with the bytes of a picture and its path, a text or nothing."""
    from pyarrow import types

    parts = {part.name: part.type for part in kind} if types.is_struct(kind) else {}
    if not {"bytes", "path"} <= parts.keys():
        return False
    path = parts["path"]
    return _is_bytes(parts["bytes"]) and (types.is_string(path) or types.is_large_string(path) or types.is_null(path))


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def require_pictures(name: str, schema: Any) -> str:
    """As `picture_column`. Raises FlowgradError, which names the table, if there is none."""
    column = picture_column(schema)
    if column is None:
        kinds = "records with bytes and path, or bytes"
        raise FlowgradError(f"{name} has no column of pictures ({kinds}): it has {schema.names}.")
    return column
