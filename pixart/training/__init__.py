"""Training: everything here may use more packages than inference does."""
