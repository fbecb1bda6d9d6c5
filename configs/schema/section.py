"""What every part of a recipe has in common."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationInfo, field_validator

from tutelage.configs.records import Frozen


class Section(Frozen):
    """A part of the recipe that holds numbers."""

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name and cls.model_fields[info.field_name].annotation is not bool:
            return not_a_boolean(value)
        return value


def not_a_boolean(value: Any) -> Any:
    """The value, unless it is true or false: pydantic would read `silos: yes` as 1."""
    if isinstance(value, bool):
        raise ValueError("true or false cannot stand here")
    return value
