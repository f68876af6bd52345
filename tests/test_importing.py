"""The collector rests while libraries are imported, and only then."""

from __future__ import annotations

import gc

import pytest

from sfpp_cli.importing import collecting_later


def test_the_collector_is_as_it_was_before() -> None:
    with collecting_later():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), collecting_later():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with collecting_later():
            pass
        assert not gc.isenabled(), "a program that has switched it off wants it off"
    finally:
        gc.enable()
