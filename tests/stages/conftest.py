"""The toy world, for every test of this folder."""

from tests.stages.toy import toy

__all__ = ["toy"]
