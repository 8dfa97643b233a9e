"""Training of syncers, generator, sync meter and the renderer's networks. Needs ``pip install "mssync[train]"``."""
