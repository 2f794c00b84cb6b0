from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eo_zoo import dates
from eo_zoo.dates import day_of_year, days_of_year
from eo_zoo.errors import InputError

NEW_YORK = datetime.timezone(datetime.timedelta(hours=-5))


@pytest.mark.parametrize(
    ("value", "day"),
    [
        (datetime.date(2019, 1, 1), 1),
        (datetime.date(2019, 12, 31), 365),
        (datetime.date(2020, 12, 31), 366),
        (datetime.date(1900, 12, 31), 365),  # divisible by 4, and no leap year
        (datetime.date(2000, 12, 31), 366),
        (datetime.datetime(2020, 2, 29, 23, 59), 60),
        (datetime.datetime(2021, 3, 1), 60),
        (np.datetime64("2020-03-01"), 61),
        (np.datetime64("2020-12-31T23:59:59.999999999"), 366),
        (np.datetime64("1969-12-31T23:59"), 365),  # before 1970 times count downwards
        (np.datetime64("2020-03"), 61),
        ("2020-02-29", 60),
        ("20200229", 60),
        ("20200229T103021", 60),
        (" 2020-02-29T10:30:21Z ", 60),
        (np.str_("2020-02-29"), 60),
        (71, 71),
        (np.int16(71), 71),
        (0.5, 0.5),
    ],
)
def test_the_first_of_january_is_1(value, day):
    found = day_of_year(value)
    assert found == day and type(found) is float


def test_every_day_is_the_standard_librarys():
    first = datetime.date(2019, 1, 1)
    every = [first + datetime.timedelta(days=i) for i in range(366 + 365)]
    expected = torch.tensor([float(day.timetuple().tm_yday) for day in every])
    for values in (
        every,
        [day.isoformat() for day in every],
        np.array(every, dtype="datetime64[D]"),
        np.array(every, dtype="datetime64[ns]"),
        np.array(every, dtype=object),
    ):
        assert torch.equal(days_of_year(values), expected)


def test_time_zones_count_in_utc_and_naive_times_as_they_are():
    late = datetime.datetime(2019, 12, 31, 23, 30)
    assert day_of_year(late) == 365
    assert day_of_year(late.replace(tzinfo=NEW_YORK)) == 1
    assert day_of_year("2019-12-31T23:30:00-05:00") == 1
    assert day_of_year("2020-01-01T00:30:00+02:00") == 365
    assert day_of_year("2019-12-31T23:30:00") == 365


def test_a_batch_keeps_its_shape():
    batch = [["2020-01-01", datetime.date(2020, 12, 31)], [np.datetime64("2021-12-31"), 7]]
    found = days_of_year(batch)
    assert found.dtype == torch.float32 and found.tolist() == [[1, 366], [365, 7]]
    assert days_of_year(batch[0]).shape == (2,)
    assert torch.equal(
        days_of_year(tuple(np.array(row, dtype="datetime64[D]") for row in [["2020-01-01"]])), found[:1, :1]
    )
    assert torch.equal(days_of_year(np.array([["2020-01-01", "2020-12-31"]])), found[:1])
    tensor = torch.tensor([[3, 4]])
    assert days_of_year(tensor) is tensor
    assert torch.equal(days_of_year([tensor[0], tensor[0]]), torch.tensor([[3.0, 4.0], [3.0, 4.0]]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["2020-01-01", "2020-01-02"], ["2020-01-01"]], r"unequal length, \(1,\) and \(2,\): fill .* mask"),
        ([["2020-01-01"], 4], "unequal length"),
        ([], "there are no dates"),
        (torch.zeros(2, 0), "there are no dates"),
        ([np.datetime64("NaT")], "hold NaT"),
        (np.array(["2020-01-01", "NaT"], dtype="datetime64[s]"), "hold NaT"),
        ([1.0, float("nan")], "hold NaN"),
        (torch.tensor([1.0, float("nan")]), "hold NaN"),
        (["12/03/2019"], "'12/03/2019' is no date in ISO form: write the year first, as '2020-02-29'"),
        (["2020/2/9"], "write '2020-02-09'"),
        (["2020_02_09 10:00"], "write '2020-02-09'"),
        (["2019-02-29"], "write a day that exists"),
        (["2020-2-30"], "write a day that exists"),
        (["71"], "'71' is no date"),
        ([""], "'' is no date"),
        ([None], "None is no date: expected a datetime, numpy.datetime64, ISO text"),
        ([True], "True is no date"),
        ({"2020-01-01"}, "is no date"),
    ],
)
def test_what_is_no_date(values, message):
    with pytest.raises(InputError, match=message):
        days_of_year(values)


def test_pandas_nat_is_recognised():
    """pandas is not needed: its NaT is a datetime that is unequal to itself."""

    class NaT(datetime.datetime):
        __hash__ = None

        def __ne__(self, other):
            return True

    with pytest.raises(InputError, match="hold NaT"):
        day_of_year(NaT(2020, 1, 1))


def test_one_date_is_not_several():
    with pytest.raises(InputError, match=r"expected one date, got \(2,\)"):
        day_of_year(["2020-01-01", "2020-01-02"])


def test_a_warning_beyond_the_year(caplog):
    days_of_year([[0, 1], [365, 366]])
    days_of_year(torch.tensor([0.0, 366.0]))
    assert not caplog.records
    for values in ([20200229], [367.0], torch.tensor([[1, -1]]), np.array([2020])):
        caplog.clear()
        days_of_year(values)
        assert "beyond the days of a year" in caplog.text and "1 January = 1" in caplog.text
    dates.check_range(torch.empty(2, 3, device="meta"))


def test_tensors_pass_a_graph():
    compiled = torch.compile(lambda days: days_of_year(days) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.tensor([1.0, 400.0])), torch.tensor([2.0, 401.0]))


def test_module_does_not_import_torch():
    code = (
        "import sys, types; package = types.ModuleType('eo_zoo'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['eo_zoo'] = package; import eo_zoo.dates; assert eo_zoo.dates.day_of_year('2020-03-01') == 61; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(dates.__file__).parent)], check=True)
