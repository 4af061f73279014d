"""The receive path at wire speed: pynetdicom negotiates, P-DATA goes from the socket to the spool file."""
