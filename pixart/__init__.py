"""PixArt-α and PixArt-Σ: the model library behind the nodes. Imports no host."""
