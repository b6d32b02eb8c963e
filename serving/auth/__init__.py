"""Who may ask for what: keys, their roles and tasks, and how much of it."""

from serving.auth.authenticator import ANONYMOUS, Authenticator, Caller
from serving.auth.keys import ADMIN, PREDICT, ROLES, WATCH, Key, KeyRing, parse_keys

__all__ = ["ADMIN", "ANONYMOUS", "Authenticator", "Caller", "Key", "KeyRing", "PREDICT", "ROLES", "WATCH", "parse_keys"]
