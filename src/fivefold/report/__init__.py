"""Curves of a run as pictures and one HTML page."""
