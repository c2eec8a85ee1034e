"""Documents to a tokenizer: training one, and the special tokens that T5's objectives need."""
