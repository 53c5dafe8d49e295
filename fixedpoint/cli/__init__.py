"""The command line, with one file per command.

Heavy modules (torch, matplotlib) are imported in functions, so that ``--help`` and mistakes are answered quickly.
"""
