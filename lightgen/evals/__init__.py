"""Numbers that describe images."""
