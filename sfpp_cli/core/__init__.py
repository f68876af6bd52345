"""The method. It knows no terminal and no command; it reports through return values and small callbacks."""
