"""The ids that pictures have in an annotation file, for `--image-ids`."""

from __future__ import annotations

from collections.abc import Sequence

from stream_rpn.evaluation.coco import read_image_ids
from stream_rpn.frame import StreamRPNError
from stream_rpn.sources import holds_images, members_of, picture_names
from stream_rpn.sources.address import local_path


class ImageIds:
    """Finds the id of a picture by the name of its file, as `NameIndex` does.

    Args:
        path: of COCO annotations.

    Raises:
        StreamRPNError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._ids = read_image_ids(path)

    def __call__(self, name: str | None) -> int:
        """Returns the id of a picture.

        Raises:
            StreamRPNError: there is none of that name, or there are several.
        """
        image_id = None if name is None else self._ids.find(name)
        if image_id is None:
            raise StreamRPNError(f"--image-ids: {self._path!r} has no image called {name!r}")
        return image_id

    def check(self, sources: Sequence[str]) -> None:
        """Checks that every picture of the sources has an id, before any is looked at.

        Raises:
            StreamRPNError: one has none, or a source is no pictures.
        """
        for source in sources:
            if not holds_images(source):
                raise StreamRPNError(
                    f"--image-ids is for pictures, which have names; {source!r} is a video"
                )
            files = members_of(source) or [local_path(source)]
            unknown = [name for name in picture_names(files) if self._ids.find(name) is None]
            if unknown:
                raise StreamRPNError(
                    f"--image-ids: {self._path!r} has no image called {unknown[0]!r}; "
                    f"{len(unknown)} of the {len(files)} pictures of {source!r} are not in it"
                )
