"""Loading, adapters, embeddings and the embedded base model."""
