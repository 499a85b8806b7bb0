"""A plan told to people: terminal text, HTML with plots, Perfetto trace."""
