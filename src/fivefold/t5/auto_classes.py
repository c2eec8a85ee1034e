"""Lets transformers' auto classes open T5s of combined parts, which have a model type of fivefold's own."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# What registers itself with which module of transformers, at its end.
_REGISTERING = {
    "transformers.models.auto.configuration_auto": "fivefold.t5.config",
    "transformers.models.auto.modeling_auto": "fivefold.t5.model",
}


def register_when_imported() -> None:
    """Import our T5 along with transformers' auto classes, or now if these are there.

    Importing both takes seconds, which `import fivefold` should not.
    """
    sys.meta_path.insert(0, _FollowingFinder())
    for theirs in _REGISTERING:
        if theirs in sys.modules:
            _follow(theirs)


def _follow(theirs: str) -> None:
    ours = _REGISTERING[theirs]
    if ours not in sys.modules:  # else it is there, or on its way and the reason why theirs is imported
        importlib.import_module(ours)


class _FollowingFinder(MetaPathFinder):
    """Finds the modules of the auto classes as Python does; ours are imported when they have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTERING:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_follow(module: ModuleType) -> None:
                run(module)
                _follow(fullname)

            spec.loader.exec_module = run_and_follow  # type: ignore[method-assign]
        return spec
