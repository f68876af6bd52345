"""The method. It knows no terminal and no files of people's; it reports through return values and small callbacks."""
