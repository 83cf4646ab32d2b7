"""What the engine wants of the images that nodes boot from, whatever cloud they are for."""

from __future__ import annotations

from abc import ABC, abstractmethod

from gridstead.cluster.progress import Progress


class Images(ABC):
    """The node image of one cluster: where it is, and how it comes there."""

    @abstractmethod
    def space(self) -> int:
        """Bytes of this machine's disk that :meth:`ensure` will take; 0 where the image is there."""

    @abstractmethod
    def ensure(self, progress: Progress, *, rebuild: bool = False) -> str:
        """The image of this checkout, built and put where nodes can boot from it when it is not there.

        Args:
            progress: told what runs.
            rebuild: build it even when it is there.

        Returns:
            What the provider knows it by.

        Raises:
            GridsteadError: the build failed; an image that was there is still there.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove the images the kit built that no node uses."""
