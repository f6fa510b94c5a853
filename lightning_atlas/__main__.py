"""`python -m lightning_atlas`."""

from lightning_atlas.cli import run

if __name__ == "__main__":
    run()
