"""Sources that are not given: documents are divided into clusters, and each is a source."""
