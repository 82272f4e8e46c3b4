"""Other people's models behind protocols, and the nano world that stands for them."""
