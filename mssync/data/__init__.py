"""Data: prepared clips for training and evaluation."""
