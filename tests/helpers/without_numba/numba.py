"""Stands before the installed numba on the path where IGPT_TEST_WITHOUT_NUMBA=1 is set: see conftest.py."""

raise ModuleNotFoundError("numba is hidden from these tests", name="numba")
