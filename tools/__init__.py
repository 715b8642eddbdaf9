"""What developers of nitrodistill run from the root of the repository: `python -m tools.toy.train --help`.

None of it is in the wheel, and nothing in `nitrodistill` imports it.
"""
