"""LightGen: small text-to-image models from teachers' pictures and preferences, from captions to a report."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightgen import recipes
    from lightgen.core.artifact import open_artifact as load_artifact
    from lightgen.stages.pipeline import LightGenPipeline

__all__ = ["LightGenPipeline", "__version__", "load_artifact", "recipes"]
__version__ = "0.1.0"

_PUBLIC = {
    "LightGenPipeline": ("lightgen.stages.pipeline", "LightGenPipeline"),
    "load_artifact": ("lightgen.core.artifact", "open_artifact"),
    "recipes": ("lightgen.recipes", None),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  (a class, a function or a module)
    """Public name, imported when first asked for, so that `import lightgen` stays instant."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lightgen' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)
