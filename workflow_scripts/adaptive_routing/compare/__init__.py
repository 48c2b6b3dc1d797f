"""Two results folders compared: `python -m adaptive_routing.compare RESULTS OTHER`.

Imports `analysis` and `system`.
"""
