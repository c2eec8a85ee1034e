"""Settings or a folder to a model of any family, dense or low rank."""
