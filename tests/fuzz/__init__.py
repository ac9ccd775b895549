"""Hostile files and arguments by the thousand: every reader, every schema and every command answers each with a result or
with one UserError, in bounded time and memory. See ``__main__`` for how to run it by hand."""
