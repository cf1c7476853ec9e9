"""Worker processes: what the loader makes of one that is gone."""

import pytest

from dfbench.errors import InputError
from dfbench.scoring.loader import PreparedBatch, guarded


@pytest.mark.parametrize(
    "error", [RuntimeError("received 0 items of ancdata"), FileNotFoundError(2, "No such file"), EOFError()]
)
def test_what_the_loader_meets_when_a_worker_is_gone(error):
    def batches():
        yield PreparedBatch(["1.jpg"])
        raise error

    found = guarded(batches(), workers=1)
    assert next(found).images == ["1.jpg"]
    with pytest.raises(InputError, match=r"image workers: one of them is gone .*fewer --workers"):
        next(found)
    with pytest.raises(type(error)):
        list(guarded(batches(), workers=0))
