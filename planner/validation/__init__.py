"""Published results as data, and predictions beside them."""
