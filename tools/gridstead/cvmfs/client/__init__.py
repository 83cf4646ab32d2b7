"""The client: a mounted, read-only view of a repository that fetches what is looked at, verifies it and keeps it."""
