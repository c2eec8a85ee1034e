"""Trained models at work: opened with what belongs to them, in the terminal."""
