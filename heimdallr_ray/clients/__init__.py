"""What a person or another site runs to send studies here: a C-STORE client and an upload client."""
