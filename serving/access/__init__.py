"""Who may ask for what: keys, their roles and tasks, and how much of it."""

from serving.access.access import Access
from serving.access.caller import ANONYMOUS, Caller
from serving.access.keys import ADMIN, PREDICT, ROLES, WATCH, Key, KeyRing, parse_keys

__all__ = ["ADMIN", "ANONYMOUS", "Access", "Caller", "Key", "KeyRing", "PREDICT", "ROLES", "WATCH", "parse_keys"]
