"""repsim: what adversarial training does to the representations inside vision models."""

__version__ = "0.1.0"
