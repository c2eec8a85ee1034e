"""T5: the encoder-decoder, its presets, and its weights in Hugging Face's names."""
