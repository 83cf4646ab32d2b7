"""``python -m gridstead.cluster``: the operator's command."""

from gridstead.cluster.cli import main

if __name__ == "__main__":
    main()
