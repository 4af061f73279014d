"""One frozen Settings object: heimdallr.toml, then HEIMDALLR_* variables. Built in cli.py and passed down.

Unknown keys, malformed files and weak secrets stop the start.
"""

from __future__ import annotations

from heimdallr_ray.config.computing import LICENCE_LENGTH
from heimdallr_ray.config.installation import MIN_SECRET_LENGTH
from heimdallr_ray.config.loading import NOT_SETTINGS, load, load_effective, save_effective
from heimdallr_ray.config.network import Peer, is_loopback
from heimdallr_ray.config.part import ENV_PREFIX
from heimdallr_ray.config.settings import Settings

__all__ = [
    "ENV_PREFIX",
    "LICENCE_LENGTH",
    "MIN_SECRET_LENGTH",
    "NOT_SETTINGS",
    "Peer",
    "Settings",
    "is_loopback",
    "load",
    "load_effective",
    "save_effective",
]
