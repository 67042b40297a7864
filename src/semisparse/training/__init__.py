"""Training with masks: models and data by name, Lightning's pieces, and the run behind `train`."""

from semisparse._torchvision import ensure

# Lightning imports torchvision too, so this comes before any module of this package does.
ensure()
