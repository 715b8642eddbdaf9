"""What the site of the docs is made of, next to the pages in `docs/`: `make docs` builds it."""
