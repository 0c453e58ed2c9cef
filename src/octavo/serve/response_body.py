"""What all bodies of responses have in common. Knows no route."""

import orjson
from pydantic import BaseModel, ConfigDict


class ResponseBody(BaseModel):
    """A body, or an object in one. A field that was not given is absent, one that is None is null.

    So only what may be absent has a default. What is marked as not to be validated is checked by mypy alone.
    """

    model_config = ConfigDict(frozen=True)

    def to_json(self) -> bytes:
        """The fields that were given, in the order in which they are declared."""
        return orjson.dumps(self, default=_given_fields)


def _given_fields(value: object) -> dict[str, object]:
    assert isinstance(value, ResponseBody)
    return {name: item for name, item in vars(value).items() if name in value.model_fields_set}
