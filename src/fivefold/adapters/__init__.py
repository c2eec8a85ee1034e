"""Adapters in peft's format: JSON files in, small folders of weights out, peft's own methods between."""
