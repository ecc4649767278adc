"""The stamps of `races` find what a comparison of all pairs of accesses finds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ptx.parse import Fault
from tests.ptx.races import Shadow, stamps

PLACES = 2
# Two programs of two warps, of which any lanes access any places at once, and barriers.
ACCESS = st.tuples(
    st.sampled_from(["read", "write", "add"]),
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, PLACES - 1)),
        min_size=1,
        max_size=4,
    ),
)
BARRIER = st.tuples(st.just("barrier"), st.integers(0, 1))


def races(history):
    """Says whether any two accesses to a place are not ordered and not both reads or both adds."""
    return any(
        one["place"] == other["place"]
        and (one["kind"] != other["kind"] or one["kind"] == "write")
        and (
            one["program"] != other["program"]
            or (one["epoch"] == other["epoch"] and one["warp"] != other["warp"])
        )
        for one, other in itertools.combinations(history, 2)
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(ACCESS, ACCESS, BARRIER), max_size=8))
def test_races_are_found_and_nothing_else(events):
    shadow, epochs, history = Shadow(PLACES), [0, 0], []
    for kind, what in events:
        if kind == "barrier":
            epochs[what] += 1
            continue
        if kind == "write":
            # Lanes that write one place in one instruction are compared by value, elsewhere.
            what = list({place: (program, warp, place) for program, warp, place in what}.values())
        history += [
            {
                "kind": kind,
                "program": program,
                "epoch": epochs[program],
                "warp": warp,
                "place": place,
            }
            for program, warp, place in what
        ]
        programs, warps, places = (np.array(column, np.int64) for column in zip(*what, strict=True))
        stamp = stamps(programs, np.array(epochs)[programs], warps)
        arguments = (np.zeros(len(stamp), bool),) if kind == "write" else ()
        if races(history):
            with pytest.raises(Fault):
                getattr(shadow, kind)(places, stamp, *arguments)
            return
        getattr(shadow, kind)(places, stamp, *arguments)
