"""A list of names in two flat buffers: ten million take their letters and eight bytes each."""

from array import array
from collections.abc import Iterator, Sequence

import numpy as np


class Names(Sequence[str]):
    """Names in order of their adding; a tenth of what a list of as many str takes."""

    def __init__(self) -> None:
        """Begin with none."""
        self._letters = bytearray()
        self._ends = array("Q", [0])

    def append(self, name: str) -> None:
        """Add a name; lone surrogates, as of file names that are no text, come back as they were."""
        self._letters += name.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._letters))

    def __len__(self) -> int:
        """Number of names."""
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  (no slices)
        """Name i; IndexError outside [0, len)."""
        if not 0 <= i < len(self):
            raise IndexError(f"name {i} of {len(self)}")
        return self._letters[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        """All names in order."""
        return (self[i] for i in range(len(self)))


def has_twins(names: Sequence[str]) -> bool:
    """Whether two of the names are the same, in 20 bytes per name."""
    hashes = np.fromiter(map(hash, names), np.int64, len(names))
    ordered = np.sort(hashes)
    twins = ordered[1:][ordered[1:] == ordered[:-1]]
    few = [names[i] for i in np.flatnonzero(np.isin(hashes, twins[:9])).tolist()]  # hashes may meet by chance
    return len(set(few)) < len(few)
