"""DEPT: decoupled embeddings for pre-training, as a Composer algorithm and a loader over sources."""
