"""How a run is spread over devices and passes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What may be changed without changing what is learned."""

    ranks: int
    micro_batch_size: int
    gradient_checkpointing: bool
    shards: int
    offload: bool = False

    def options(self, wanted: "Setting") -> str:
        """Options of the command line that turn a wanted setting into this one."""
        names = ("micro_batch_size", "offload", "gradient_checkpointing", "shards")
        changed = [each for each in names if vars(self)[each] != vars(wanted)[each]]
        told = [f"--run.{each.replace('_', '-')} {vars(self)[each]}" for each in changed]
        return " ".join(([f"--ranks {self.ranks}"] if self.ranks != wanted.ranks else []) + told)
