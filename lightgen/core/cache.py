"""Where lightgen keeps what can be had again: fetched files, features of images."""

from pathlib import Path

from lightgen.core.config import environment


def cache_folder(name: str) -> Path:
    """Folder of a name in the user's cache; it need not exist."""
    place = environment("XDG_CACHE_HOME")
    return (Path(place) if place else Path.home() / ".cache") / "lightgen" / name
