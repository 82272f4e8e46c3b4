"""Stages: which artifact becomes which."""
