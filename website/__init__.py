"""The documentation site: pages that are made of the code. `make docs` builds it."""
