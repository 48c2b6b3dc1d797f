"""Data sets: their rows, token sequences and prepared samples; `tasks` holds one module a data set.

Imports `system`.
"""
