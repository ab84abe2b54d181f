"""The verbs of `ts-ensemble`, one file each."""
