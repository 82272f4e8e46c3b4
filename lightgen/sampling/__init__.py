"""Loops that turn noise into tokens."""
