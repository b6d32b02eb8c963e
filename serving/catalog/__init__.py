"""What an endpoint serves: one object that every replica follows, changed by compare-and-swap.

Nothing that is imported here needs torch: the command line changes catalogues too. The engine's side is in `keeper`.
"""

from serving.catalog import changes
from serving.catalog.catalog import Catalog, Entry, Target, parse_catalog
from serving.catalog.places import change_catalog, open_catalog

__all__ = ["Catalog", "Entry", "Target", "change_catalog", "changes", "open_catalog", "parse_catalog"]
