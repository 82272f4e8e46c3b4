"""The nano world: an emoji teacher, its language, and small stand-ins for pretrained models."""
