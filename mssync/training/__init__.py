"""Training of the reenactor, the syncers and the generator. Needs ``pip install "mssync[train]"``."""
