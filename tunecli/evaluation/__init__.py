"""What a model can do, beyond its loss."""
