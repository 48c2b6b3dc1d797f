"""How a job runs and when it must run again: what every script does, fingerprints of code, the model host.

Imports everything from `evaluation` down; only the scripts and the rules import it.
"""
