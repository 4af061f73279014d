"""Running the product: supervisor, doctor, demo."""
