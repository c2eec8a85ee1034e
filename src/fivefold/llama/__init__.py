"""LLaMA-style decoders: their shapes by name; the model itself is transformers' own."""
