"""The least change of a model's outputs at a wanted latency: sparsities for each layer.

`latency` measures an exported file where it is to run and imports no torch; `sensitivity` and
`search` need the model.
"""
