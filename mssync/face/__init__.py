"""Faces in pictures: where they are (`detector`), and their mesh of 478 points (`mesh`), by networks of our own."""
