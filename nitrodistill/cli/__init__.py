"""The command line: `nitrodistill VERB [options]`, one file a verb.

A verb's module has `main(argv) -> int`: it parses its own arguments, does the work and returns the exit code.
It may raise ValueError, TypeError, OSError and their like with one sentence; `cli.main` prints that.
"""
