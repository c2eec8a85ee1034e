"""Parallel branches in one decoder: a main text, and texts that go on from it beside each other."""
