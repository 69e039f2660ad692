"""The samples on which budgets are met where counts differ by sample; never those of the test."""

from functools import cached_property

from tokred.data import DataSource, create_data
from tokred.sweeps.config import SweepConfig

MOST_SAMPLES = 256  # unless `calibration.limit` or `calibration.num_clips` says another number


class CalibrationSamples:
    """Those that ``calibration`` names, else those that the data itself knows apart from its own; found when first asked for."""

    def __init__(self, config: SweepConfig, data: DataSource):
        self.config, self.data = config, data

    @cached_property
    def _found(self) -> DataSource | ValueError:
        try:
            return self._find()
        except ValueError as error:
            return error

    def source(self) -> DataSource:
        """Raises ValueError where there are none, or where they share a sample with the test."""
        if isinstance(self._found, ValueError):
            raise self._found
        return self._found

    def _find(self) -> DataSource:
        known, asked = self.data.apart(MOST_SAMPLES), self.config.calibration
        if not asked:
            if known is None:
                raise ValueError(
                    "its counts differ by sample, so that a budget is met on samples apart from the test: give "
                    f"calibration.root=FOLDER (of which {MOST_SAMPLES} are taken), or budget=null, and it does as its options say"
                )
            return known
        options = (known or self.data).description()
        options |= {"limit": MOST_SAMPLES} if "limit" in options else {}
        apart = create_data(**{**options, **asked})
        if shared := len(apart.contents() & self.data.contents()):
            raise ValueError(
                f"the calibration samples must not be those of the test, and {shared} of {len(apart)} are; give others"
            )
        return apart
