"""Rendering: a portrait under a face mesh. Geometry carries the picture, networks paint what geometry cannot know.

Layers, back to front: `plate` (what is behind the person), `field` (the person's own pixels, warped), `painter` (mouth
and eyes). `renderer.LayeredRenderer` puts them together.
"""
