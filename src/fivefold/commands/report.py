"""Draw a run's curves, and those of the runs it started from, on one HTML page; several runs go over one another."""

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
    lineage: bool | None = None
    """Draw the runs that led to a run (pretraining, SFT, DPO) beside it, as far back as the models they started from
    can be followed; by default so for a single run, and --no_lineage draws it alone."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("No run is named, but report needs at least one: fivefold report RUN.")
        if self.output_dir is None and len(self.runs) > 1:
            raise ConfigError(f"{len(self.runs)} runs make one report: say where it goes with --output_dir FOLDER.")
        if self.lineage and len(self.runs) > 1:
            raise ConfigError(
                f"--lineage shows what led to one run, and {len(self.runs)} are named: name the last one."
            )


def run(settings: ReportSettings, *, dry_run: bool) -> None:
    """Write the report and print where it lies, with the main numbers of each run."""
    from fivefold.report.lineage import Lineage, read_lineage
    from fivefold.report.page import summarise, write_lineage_report, write_report
    from fivefold.report.run_log import read_log

    folders = [Path(name) for name in settings.runs]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist: give the folder of a training run.")
    output_dir = Path(settings.output_dir) if settings.output_dir is not None else folders[0]
    follows = len(folders) == 1 and settings.lineage is not False
    lineage = read_lineage(folders[0]) if follows else Lineage([read_log(folder) for folder in folders], "")
    for stage in lineage.runs:
        numbers = ", ".join(f"{label} {value}" for label, value in summarise(stage).items())
        print(f"{stage.name}: {numbers}")
    if lineage.origin:
        print(lineage.origin)
    elif settings.lineage and len(lineage.runs) == 1:
        print(f"{lineage.runs[0].name} started from fresh weights; there is no run before it.")
    if dry_run:
        print(f"would write {output_dir / 'report.html'}")
    elif follows:
        print(f"wrote {write_lineage_report(lineage, output_dir)}")
    else:
        print(f"wrote {write_report(folders, output_dir)}")
