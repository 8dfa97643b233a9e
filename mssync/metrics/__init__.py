"""Evaluation: what can be measured on pictures, landmarks and motion."""
