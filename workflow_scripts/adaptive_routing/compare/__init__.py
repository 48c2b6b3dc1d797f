"""Compares two results folders: `python -m adaptive_routing.compare RESULTS OTHER`.

Imports `analysis` and `system`.
"""
