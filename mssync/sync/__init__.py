"""Lips and sound of a video: what the sync meter finds in it (`score`), and mending it (`resync`)."""
