"""How a job runs and when it must run again: what every script does, fingerprints of code, the model host.

Imports all folders below; nothing but the scripts and the workflow imports it.
"""
