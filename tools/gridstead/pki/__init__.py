"""Keys and certificates of a cluster, by the ``cryptography`` package."""
