"""diffusers' UNet2DModel and AutoencoderKL, imported without what they do not need: 4 s of start-up become 1 s.

`torch._dynamo` is asked for decorators that matter to compiled models alone, the mixins of `diffusers.loaders` serve
adapters and single files alone, and three packages import all of their modules although one of each is used. While
the two classes are imported, stand-ins take their places; afterwards everything is imported as ever.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class Classes(NamedTuple):
    """The classes of networks that the embedded models are made of."""

    unet: Any
    autoencoder: Any


@lru_cache(maxsize=1)
def network_classes() -> Classes:
    """Import the two classes."""
    if "diffusers" in sys.modules:
        return _import()
    try:
        with _stand_ins():
            return _import()
    except (ImportError, AttributeError, RuntimeError):  # another diffusers, laid out differently
        for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
            del sys.modules[name]
        return _import()


def _import() -> Classes:
    import diffusers.hooks  # noqa: F401 (which a network asks for when it is loaded)
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d import UNet2DModel

    return Classes(UNet2DModel, AutoencoderKL)


@contextmanager
def _stand_ins() -> Iterator[None]:
    made: dict[str, ModuleType] = {}

    def stand_in(name: str, **attributes: object) -> ModuleType:
        module = ModuleType(name)
        vars(module).update(attributes)
        if sys.modules.setdefault(name, module) is module:
            made[name] = module
        return module

    stand_in("torch._dynamo", allow_in_graph=_unchanged, disable=_undecorated)  # before any of diffusers
    try:
        import diffusers.models

        root = Path(diffusers.models.__path__[0])
        for package in ("transformers", "unets", "autoencoders"):
            stand_in(f"diffusers.models.{package}", __path__=[str(root / package)])
        mixins = {"PeftAdapterMixin": type("PeftAdapterMixin", (), {})}
        stand_in("diffusers.loaders", __path__=[str(root.parent / "loaders")], **mixins)
        stand_in("diffusers.loaders.single_file_model", FromOriginalModelMixin=type("FromOriginalModelMixin", (), {}))
        yield
    finally:
        for name, module in made.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _unchanged(function: Callable[..., object]) -> Callable[..., object]:
    return function


def _undecorated(function: Callable[..., object] | None = None, *_: object, **__: object) -> object:
    return _unchanged if function is None else function
