"""One file a verb. Each `run` takes settings dataclasses; their fields are the verb's flags."""
