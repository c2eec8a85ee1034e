"""A batch and a model to a loss sum and the count of its terms."""
