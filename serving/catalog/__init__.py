"""What an endpoint serves: one object that every replica follows, changed by compare-and-swap.

Nothing that is imported here needs torch: the command line changes catalogues too. The engine's part is `reconciler`.
"""

from serving.catalog import changes
from serving.catalog.catalog import Catalog, CatalogEntry, CatalogTarget, parse_catalog
from serving.catalog.storage import change_catalog, open_catalog

__all__ = ["Catalog", "CatalogEntry", "CatalogTarget", "change_catalog", "changes", "open_catalog", "parse_catalog"]
