"""The text side: caption cleaning, the token budget, and T5 encoders on disk."""
