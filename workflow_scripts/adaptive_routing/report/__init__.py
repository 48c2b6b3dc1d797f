"""The report in words: `markdown` puts the sections together, `html` makes a page of them.

Imports the figures' list of panels and the numbers of `analysis`.
"""
