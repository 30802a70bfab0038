"""Agreement with the numbers of the official implementations; see ``tests/golden/README.md``."""
