"""`python -m lightning_atlas`."""

from lightning_atlas.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
