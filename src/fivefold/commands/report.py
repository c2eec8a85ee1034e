"""Draw a run's curves and write them with its settings as one HTML page; several runs go over one another."""

from dataclasses import dataclass
from pathlib import Path

from fivefold.errors import ConfigError, DataError

POSITIONAL = "runs"


@dataclass
class ReportSettings:
    """What to report on."""

    runs: list[str]
    """Folders of training runs."""
    output_dir: str | None = None
    """Folder for report.html and the PNG curves; by default the run's own folder, several runs need one named."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("No run is named, but report needs at least one: fivefold report RUN.")
        if self.output_dir is None and len(self.runs) > 1:
            raise ConfigError(f"{len(self.runs)} runs make one report: say where it goes with --output_dir FOLDER.")


def run(settings: ReportSettings, *, dry_run: bool) -> None:
    """Write the report and print where it lies, with the main numbers of each run."""
    from fivefold.report.curves import read_log
    from fivefold.report.page import summarise, write_report

    folders = [Path(name) for name in settings.runs]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist: give the folder of a training run.")
    output_dir = Path(settings.output_dir) if settings.output_dir is not None else folders[0]
    for folder in folders:
        numbers = ", ".join(f"{label} {value}" for label, value in summarise(read_log(folder)).items())
        print(f"{folder}: {numbers}")
    if dry_run:
        print(f"would write {output_dir / 'report.html'}")
    else:
        print(f"wrote {write_report(folders, output_dir)}")
