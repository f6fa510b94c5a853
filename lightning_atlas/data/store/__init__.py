"""Scans read once, brought to the network's grid, kept on disk, and the way back to the file."""
