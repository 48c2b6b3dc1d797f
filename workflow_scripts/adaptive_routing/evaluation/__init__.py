"""Passes of the model over text: one experiment, the calibration, and what both are made of.

Imports `model`, `routing_log`, `routing`, `data` and `system`.
"""
