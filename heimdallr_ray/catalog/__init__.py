"""The catalog: SQLModel tables, their states, queries and migrations. Truth lives here and in the blob store."""
