"""The report in words: `markdown` assembles the sections, `html` turns them into a page.

Imports the figures' list of panels and the numbers of `analysis`.
"""
