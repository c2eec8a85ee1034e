"""The parts of a network, each usable alone."""
