"""Where models come from: presets, transformers configs, and a user's own file."""
