"""What to do: trace, strategy space, layouts, lowering, search, explanation and report."""
