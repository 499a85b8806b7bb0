"""From a torch module to the model graph."""
