"""How the embedded teachers were trained: `python -m tools.toy.train --output DIR` makes them from scratch."""
