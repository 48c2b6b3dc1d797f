"""Passes of the model over text: an experiment, the calibration, and what both share.

Imports `model`, `routing_log`, `routing`, `data` and `system`.
"""
