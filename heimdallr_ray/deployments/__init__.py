"""The five Serve deployments and the builder that serve_config.yaml names."""
