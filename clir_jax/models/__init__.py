"""Models: encoders, retrievers, their vocabularies and their files."""
