"""Serve: how strangers ask."""
