"""Statistics of a model on its data: inputs of its linear layers, and gradients."""
