"""The HTTP interface: routers parse, call one function and render; no logic."""
