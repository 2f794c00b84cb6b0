"""Pretraining losses, one file a family."""
