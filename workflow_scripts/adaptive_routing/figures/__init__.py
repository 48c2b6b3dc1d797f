"""All that is drawn with matplotlib: what figures share, one module a figure, and the nine panels.

Imports `analysis` and `system`.
"""
