"""The command line and the verbs of a notebook: the top floor, which imports all others."""
