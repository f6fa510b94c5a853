"""A dataset looked through: defects, a fingerprint, a proposed recipe."""
