"""Publishing: a repository on disk, which a web server hands out, and all that changes it."""
