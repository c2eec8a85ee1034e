"""List the corpora that --data knows by name: language, size, licence, and where they come from."""

from fivefold.corpus.catalogue import format_catalogue


def run(*, dry_run: bool) -> None:
    """Print the table; there is nothing that a dry run would leave out."""
    print(format_catalogue())
