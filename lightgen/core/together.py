"""An artifact that several ranks make: the first begins and commits it, the others write in its workspace."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from lightgen.core.artifact import Artifact, Workspace, begin_artifact, open_artifact, workspace_of
from lightgen.core.ranks import from_first, join_ranks, meet, rank

# Ranks that are done wait for those that are not; one that dies ends the others by torchrun, not by this.
PATIENCE_S = 24 * 3600.0


def begin_together(
    out: str | Path, kind: str, config: Mapping[str, Any], parents: Sequence[Artifact]
) -> Workspace | Artifact:
    """What `begin_artifact` gives the first rank; to the others a guest of its workspace, or the artifact.

    All ranks call it, on a file system that all see. Outside torchrun it is `begin_artifact`.

    Raises:
        ArtifactError: as `begin_artifact`, on the first rank.
    """
    join_ranks(PATIENCE_S)
    found = begin_artifact(out, kind, config, parents) if rank() == 0 else None
    is_whole = from_first(int(isinstance(found, Artifact)))
    if found is not None:
        return found
    return open_artifact(out, kind, verify=False) if is_whole else _Guest(Path(out), kind)


class _Guest(Workspace):
    """The first rank's workspace as another rank sees it: files may be added, the end is the first's."""

    def __init__(self, out: Path, kind: str) -> None:
        self.out, self.path, self._kind = out, workspace_of(out), kind

    def __enter__(self) -> Self:
        """Return the workspace itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave everything to the first rank."""


def commit_together(workspace: Workspace, counts: Mapping[str, int], **extra: Any) -> Artifact:  # noqa: ANN401
    """The artifact on every rank, committed by the first; arguments as of `Workspace.commit`."""
    meet()  # nobody looks at the workspace any more
    made = None if isinstance(workspace, _Guest) else workspace.commit(counts, **extra)
    from_first(0)  # it is whole
    return made if made is not None else open_artifact(workspace.out, verify=False)
