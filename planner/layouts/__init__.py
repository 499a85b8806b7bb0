"""Which index each operator splits on a mesh axis, and what that costs."""
