"""What a model is worth: SuperGLUE, perplexity, preferences, generated text, and runs beside each other."""
