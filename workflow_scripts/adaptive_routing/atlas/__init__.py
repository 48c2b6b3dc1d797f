"""The routing atlas: how experts were routed, beyond the metrics.

`summary.py` condenses an experiment's tensors into one small file; `tokens.py` gives tokens their text;
`page.py` makes the interactive page of all experiments (its script and looks: `page/`); `figures.py` draws
the pictures.
"""
