"""Estimated time and memory of the published recipes against the committed table."""

import pytest

from benchmarks import recipe_plans

pytestmark = [pytest.mark.release, pytest.mark.tpu_compile, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", recipe_plans.read_table()["plans"])
def test_time_and_memory_are_those_of_the_table(name):
    pytest.importorskip("libtpu")
    table = recipe_plans.read_table()
    found, known = recipe_plans.make_plan(name), table["plans"][name]
    changed = f"{name}: table of {table['versions']}"
    assert found["ms"] == pytest.approx(known["ms"], rel=0.03), changed
    assert found["gib"] == pytest.approx(known["gib"], rel=0.03), changed
