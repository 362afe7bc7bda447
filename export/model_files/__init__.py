"""The files that a model comes as: configs, weights, adapters, code of its own."""
