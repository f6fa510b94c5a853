"""The command line."""

from lightning_atlas.cli.command import main, run

__all__ = ["main", "run"]
