"""What a record must pass before it is written, and again when a set is verified."""

from mres.pixels.picture import PictureError, open_picture
from mres.record_checks import record_from_json
from mres.record_json import record_to_json
from mres.records import ImageRecord, RecordError

_SUFFIXES = {"JPEG": "jpg", "PNG": "png"}


def check_record(record: ImageRecord, where: str) -> str:
    """Checks every field and decodes the image to its last byte; returns the suffix of the image's format.

    Raises:
        RecordError: naming `where`, the record, and what is wrong with it: a field; an image that is not JPEG or PNG,
            damaged, or of another size than the record says.
    """
    record_from_json(record_to_json(record, "image"), record.image, where)
    where = f"{where}: record {record.id!r}: image"
    try:
        with open_picture(record.image) as image:
            suffix, size = _SUFFIXES.get(image.format or ""), image.size
            if suffix is None:
                raise RecordError(f"{where}: the format is {image.format}, allowed: JPEG, PNG")
            if size != (record.width, record.height):
                raise RecordError(
                    f"{where}: it has {size[0]}x{size[1]} pixels, the record says {record.width}x{record.height}"
                )
            image.load()
    except PictureError as error:
        raise RecordError(f"{where}: it {error}") from None
    except RecordError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error …
        raise RecordError(f"{where}: cannot be decoded: {error}") from None
    return suffix
