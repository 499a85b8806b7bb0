"""The front door: ten public names and the command line."""
