"""DEPT: decoupled embeddings for pre-training, a Composer algorithm and a loader over sources."""
