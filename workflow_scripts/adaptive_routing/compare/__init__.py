"""Compares two results folders, whole or on one screen: `python -m adaptive_routing.compare RESULTS OTHER`.

Imports `analysis` and `system`.
"""
