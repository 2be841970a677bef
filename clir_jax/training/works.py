"""Which work is carried out how."""

from clir_jax.config import EncodeTeacher, Generate, Mine, Score
from clir_jax.training.answering import encode_teacher
from clir_jax.training.artifacts import Workplace
from clir_jax.training.generating import generate
from clir_jax.training.mining import mine
from clir_jax.training.scoring import score


def carry_out(work: Mine | Score | Generate | EncodeTeacher, place: Workplace) -> str:
    """Make the artifact of a work, unless it is there and fresh; see ``artifacts.ensure``.

    Args:
      work: what to do.
      place: where, and with what.

    Returns:
      The hash of the artifact's content.
    """
    if isinstance(work, Mine):
        return mine(work, place)
    if isinstance(work, Score):
        return score(work, place)
    if isinstance(work, Generate):
        return generate(work, place)
    return encode_teacher(work, place)
