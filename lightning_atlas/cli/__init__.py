"""The command line."""

from lightning_atlas.cli.command import main

__all__ = ["main"]
