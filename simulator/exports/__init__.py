"""Timelines for other tools: pandas frames, Chrome and Perfetto traces, plots."""
