"""Data sets: their rows, token sequences and prepared samples; `tasks` holds one module per data set.

Imports `system`.
"""
