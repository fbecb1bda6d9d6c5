"""`tutelage ask`: a published student's answers, asked as it was when it was measured."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.configs.models import resolve_model
from tutelage.configs.records import Example
from tutelage.flows import layout, registry
from tutelage.flows.stage import Run
from tutelage.students import train
from tutelage.students.compare import Comparison


def ask(run: Run, round: int, texts: Sequence[str]) -> Sequence[str]:
    """What a round's published student says of some texts.

    Args:
        run: The run.
        round: One whose student is in the registry.
        texts: For classification to be labelled, for generation to be answered.

    Returns:
        One answer for each text.

    Raises:
        UserError: the round has no published student.
    """
    version = registry.published_version(run, round)
    student, tokenizer = train.load_student(resolve_model(run.recipe.student.base), version)
    questions = [Example(id=str(at), prompt=text, completion="") for at, text in enumerate(texts)]
    return Comparison(run.recipe, questions).answers(
        student,
        tokenizer,
        instruction=layout.instruction(run, round),
        taught_with=layout.lessons(run, round).examples(),
    )
